"""Measuring on held-out rows: the same packs, scores and objective as training, and no gradient."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from preftune.data.groups import TokenGroup
from preftune.objective.arrange import Views
from preftune.pack.plan import Step
from preftune.record.meters import SCORES
from preftune.training.measure import Sums, Values, margins, rank_correlation
from preftune.training.passes import Memory, score_all, score_mismatched
from preftune.training.step import Engine, ask


@dataclass(frozen=True, slots=True)
class Evaluation:
    """values: one line of evaluations.jsonl without its step; rows: one object a pair (record.meters.ROW);
    views: every response's scores in fp64, in the order of the groups."""

    values: Values
    rows: list[dict[str, object]]
    views: Views

    @property
    def logp(self) -> np.ndarray:
        """(responses,) fp64."""
        return self.views.scores.logp.numpy()


@dataclass(frozen=True)
class HeldOut:
    """Groups to measure on, cut into packs once."""

    groups: Sequence[TokenGroup]
    step: Step

    @classmethod
    def of(cls, groups: Sequence[TokenGroup], engine: Engine) -> HeldOut:
        return cls(groups, engine.packing.step(groups, engine.ranks.count))


def evaluate(engine: Engine, held_out: HeldOut, memory: Memory, start: np.ndarray | None) -> Evaluation:
    """Measure. start: (responses,) logp before training, or None where this is that measurement.

    The objective is asked once about all rows, in fp64, so that no meter depends on how they were cut into packs.
    """
    began = time.monotonic()
    whole = score_all(engine, held_out.groups, held_out.step, memory)
    mismatched = score_mismatched(engine, held_out.groups, memory)
    judgement = ask(engine.judge, held_out.groups, whole.scores, mismatched and mismatched.scores)
    views = judgement.views
    before = views.scores.logp if start is None else torch.from_numpy(start)
    sums = Sums(engine.judge.objective)
    sums.add(views, judgement.value, before)
    values = sums.means(list(SCORES)) | _lengths(views, before)
    values |= {"rows": len(held_out.groups), "seconds": round(time.monotonic() - began, 3)}
    return Evaluation(values, _rows(views, before), views)


def _lengths(views: Views, before: torch.Tensor) -> Values:
    """Meters that tell whether the policy learned length."""
    scores = views.scores
    ratio = scores.logp - before if scores.reference is None else scores.log_ratio
    values: Values = {"reward_length_correlation": rank_correlation(ratio.numpy(), scores.tokens.numpy())}
    better, worse, _, _ = views.compared
    if len(better):
        margin, longer = margins(views), scores.tokens[better] - scores.tokens[worse]
        right = (margin > 0).double() + 0.5 * (margin == 0)
        for name, these in (("chosen_longer", longer > 0), ("chosen_shorter", longer < 0)):
            values[f"accuracy_{name}"] = float(right[these].mean()) if bool(these.any()) else None
    return values


def _rows(views: Views, before: torch.Tensor) -> list[dict[str, object]]:
    margin = margins(views) if len(views.compared[0]) else None
    rows: list[dict[str, object]] = []
    seen = 0
    for start, group in zip(views.starts, views.groups, strict=True):
        if group.kind == "pair" and margin is not None:
            sides = {"chosen": start, "rejected": start + 1}
            row: dict[str, object] = {"id": group.id or str(group.place), "margin": float(margin[seen])}
            for side, at in sides.items():
                logp = float(views.scores.logp[at])
                row |= {
                    f"{side}_logp": logp,
                    f"{side}_logp_change": logp - float(before[at]),
                    f"{side}_tokens": int(views.scores.tokens[at]),
                }
            rows.append(row)
        seen += views.pairs_of(group)
    return rows

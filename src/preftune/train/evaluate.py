"""Measuring on held-out rows: the same packs, scores and objective as training, and no gradient."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from preftune.data.groups import TokenGroup
from preftune.model.policy import Policy
from preftune.objective import Objective
from preftune.objective.arrange import Views
from preftune.objective.scores import Scores
from preftune.pack.plan import fill, prefix_rank
from preftune.record.meters import SCORES
from preftune.reference.reference import NoReference, Reference
from preftune.train.measure import Sums, Values, margins, rank_correlation
from preftune.train.step import given_scores, score, total


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
    packs: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, groups: Sequence[TokenGroup], tokens: int) -> HeldOut:
        near = prefix_rank([g.prompt for g in groups])
        return cls(groups, fill(range(len(groups)), [g.tokens for g in groups], tokens, near))


def evaluate(
    policy: Policy, reference: Reference, objective: Objective, held_out: HeldOut, start: np.ndarray | None
) -> Evaluation:
    """Measure. start: (responses,) logp before training, or None where this is that measurement."""
    began = time.monotonic()
    firsts = np.cumsum([0, *(len(g.responses) for g in held_out.groups)])
    found = np.empty((3, firsts[-1]))  # logp, reference, tokens
    with torch.no_grad():
        for pack in held_out.packs:
            scores = score(policy, reference, [held_out.groups[i] for i in pack]).scores()
            at = np.concatenate([np.arange(firsts[i], firsts[i + 1]) for i in pack])
            reference_logp = scores.logp if scores.reference is None else scores.reference
            for row, values in zip(found, (scores.logp, reference_logp, scores.tokens), strict=True):
                row[at] = values.double().cpu().numpy()
        return _summary(found, held_out.groups, objective, start, reference, began)


def _summary(
    found: np.ndarray, groups: Sequence[TokenGroup], objective: Objective, start: np.ndarray | None,
    reference: Reference, began: float,
) -> Evaluation:  # fmt: skip
    """Everything from the whole set at once: no meter depends on how it was cut into packs."""
    logp, anchor, tokens = (torch.from_numpy(row) for row in found)
    before = logp if start is None else torch.from_numpy(start)
    with_reference = not isinstance(reference, NoReference)
    views = Views(groups, Scores(logp, tokens, anchor if with_reference else None, given_scores(groups, logp)))
    sums = Sums(objective)
    sums.add(views, float(total(objective, views)), before)
    values = sums.means(list(SCORES))
    ratio = (logp - (anchor if with_reference else before)).numpy()
    values |= {"rows": len(groups), "reward_length_correlation": rank_correlation(ratio, found[2])}
    better, worse, _, _ = views.compared
    if len(better):
        margin, longer = margins(views), tokens[better] - tokens[worse]
        right = (margin > 0).double() + 0.5 * (margin == 0)
        for name, these in (("chosen_longer", longer > 0), ("chosen_shorter", longer < 0)):
            values[f"accuracy_{name}"] = float(right[these].mean()) if bool(these.any()) else None
    values["seconds"] = round(time.monotonic() - began, 3)
    return Evaluation(values, _rows(views, before), views)


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
                row |= {f"{side}_logp": logp, f"{side}_logp_change": logp - float(before[at]),
                        f"{side}_tokens": int(views.scores.tokens[at])}  # fmt: skip
            rows.append(row)
        seen += sum(a < b for a in group.ranks for b in group.ranks)
    return rows

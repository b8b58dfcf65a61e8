"""Measuring on held-out rows: the same packs, scores and objective as training, and no gradient."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from preftune.evaluate.metrics import TIE, Sums, Values, judged, margins, rank_correlation, ranked_right, right_of
from preftune.forward.examples import Examples
from preftune.forward.forward import score_all, score_mismatched
from preftune.forward.loss import Models, ask
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Step
from preftune.record.schema import COMMON
from preftune.tokens.groups import TokenGroup


@dataclass(frozen=True, slots=True)
class Evaluation:
    """values: one line of evaluations.jsonl without its step; rows: one object a row (record.meters.ROW);
    views: every response's scores in fp64, in the order of the groups."""

    values: Values
    rows: list[dict[str, object]]
    views: Examples

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
    def of(cls, groups: Sequence[TokenGroup], engine: Models) -> HeldOut:
        return cls(groups, engine.packing.step(groups, engine.dist.world_size))


def evaluate(engine: Models, held_out: HeldOut, memory: OomRetry, start: np.ndarray | None) -> Evaluation:
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
    placed, since = placements(views, learned(views, before)), placements(views, views.scores.logp - before)
    right, gained = right_of(views, engine.judge.objective), _gained(views, before)
    values = sums.means(list(COMMON)) | _lengths(views, before, right)
    values |= {"accuracy_of_change": _mean(gained, judged(views))} | _apart(views, placed, since, before)
    values |= {"rows": len(held_out.groups), "responses": len(views.scores.logp)}
    values |= {"seconds": round(time.monotonic() - began, 3)}
    return Evaluation(values, _rows(views, before, placed, since, right, gained), views)


def learned(views: Examples, before: torch.Tensor) -> torch.Tensor:
    """(responses,) log-ratio; without a reference, to the model that training began from."""
    return views.scores.logp - before if views.scores.reference is None else views.scores.log_ratio


def rated(views: Examples) -> dict[bool, list[int]]:
    """Places of the responses called good (True) and bad (False); empty where one of the two is missing."""
    called = [(at, g.good) for at, g in zip(views.starts, views.groups, strict=True) if g.kind == "rating"]
    sides = {side: [at for at, good in called if good is side] for side in (True, False)}
    return sides if all(sides.values()) else {}


def placements(views: Examples, values: torch.Tensor) -> dict[int, float]:
    """Place of each rated response -> share of those of the other class on whose right side its value stands.

    values: (responses,). The mean over the good ones, or over the bad ones, is how often a good one has the larger.
    """
    ratio, sides, found = values.numpy(), rated(views), {}
    for side, mine in sides.items():
        others = np.sort(ratio[sides[not side]])
        below = np.searchsorted(others, ratio[mine] - TIE) + np.searchsorted(others, ratio[mine] + TIE, "right")
        share = below / (2 * len(others)) if side else 1 - below / (2 * len(others))
        found |= dict(zip(mine, share.tolist(), strict=True))
    return found


def _apart(views: Examples, placed: dict[int, float], since: dict[int, float], before: torch.Tensor) -> Values:
    """Accuracies and margin of ratings, which have no pairs; nothing where there are pairs, or one class only."""
    if len(views.pair_index[0]) or not placed:
        return {}
    ratio, sides = learned(views, before), rated(views)
    accuracy, changed = (sum(each[at] for at in sides[True]) / len(sides[True]) for each in (placed, since))
    return {
        "accuracy": accuracy,
        "accuracy_of_change": changed,
        "margin": float(ratio[sides[True]].mean() - ratio[sides[False]].mean()),
    }


def _gained(views: Examples, before: torch.Tensor) -> torch.Tensor:
    """(pairs,) 1 where the chosen response has gained more than the rejected one since the start, one half at a tie."""
    change, (better, worse, _, _) = views.scores.logp - before, views.pair_index
    return ranked_right(change[better] - change[worse])


def _mean(values: torch.Tensor, weight: torch.Tensor) -> float | None:
    total = float(weight.sum())
    return float((values * weight).sum()) / total if total else None


def _lengths(views: Examples, before: torch.Tensor, right: torch.Tensor) -> Values:
    """Meters that tell whether the policy learned length."""
    scores, ratio = views.scores, learned(views, before)
    moved = bool((ratio.abs() > TIE).any())  # before that the ranks are those of rounding errors
    values: Values = {
        "reward_length_correlation": rank_correlation(ratio.numpy(), scores.tokens.numpy()) if moved else None
    }
    better, worse, _, _ = views.pair_index
    if len(better):
        longer, fair = scores.tokens[better] - scores.tokens[worse], judged(views) > 0
        for name, these in (("chosen_longer", longer > 0), ("chosen_shorter", longer < 0)):
            values[f"accuracy_{name}"] = _mean(right, (these & fair).to(right))
    return values


def _told(group: TokenGroup, start: int) -> list[tuple[str, int]]:
    """Side and place of each response of a row, as meters call the sides; of a ranking, nothing."""
    if group.kind == "pair":
        return [("chosen", start), ("rejected", start + 1)]
    return [("rejected" if group.good is False else "chosen", start)] if len(group.responses) == 1 else []


def _rows(
    views: Examples,
    before: torch.Tensor,
    placed: dict[int, float],
    since: dict[int, float],
    right: torch.Tensor,
    gained: torch.Tensor,
) -> list[dict[str, object]]:
    margin = margins(views)
    rows: list[dict[str, object]] = []
    seen = 0
    for start, group in zip(views.starts, views.groups, strict=True):
        mine = slice(seen, seen := seen + views.pairs_of(group))
        row: dict[str, object] = {"id": group.id or str(group.place)}
        if len(margin[mine]):
            row["margin"] = float(margin[mine].mean())
            if group.preferred != 0.5:
                row |= {"accuracy": float(right[mine].mean()), "accuracy_of_change": float(gained[mine].mean())}
        elif start in placed:
            row |= {"accuracy": placed[start], "accuracy_of_change": since[start]}
        for side, at in _told(group, start):
            logp = float(views.scores.logp[at])
            row |= {
                f"{side}_logp": logp,
                f"{side}_logp_change": logp - float(before[at]),
                f"{side}_tokens": int(views.scores.tokens[at]),
            }
        if len(row) > 1:
            rows.append(row)
    return rows

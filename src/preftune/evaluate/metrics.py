"""Meters of a step or an evaluation: weighted sums over packs, one division at the end."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
from torch import Tensor

from preftune.forward.examples import Examples
from preftune.objective import parts
from preftune.objective.base import ObjectiveTable
from preftune.objective.responses import Responses

Values = dict[str, float | None]
TIE = 1e-3  # nats; fp32 gives a policy that equals its reference a margin of up to about a tenth of it


def rewards(objective: ObjectiveTable, scores: Responses) -> Tensor | None:
    """(responses,) beta times the log-ratio as the first part of the objective with a beta and a reference takes it.

    None where there is no such part, or no reference.
    """
    for _, part in parts(objective):
        beta = msgspec.structs.asdict(part).get("beta")
        if "reference" in part.reads and beta is not None and scores.reference is not None:
            return beta * (scores.mean_log_ratio if part.length_normalized else scores.log_ratio)
    return None


@dataclass
class Sums:
    """Weighted sums of each meter and of its weights."""

    objective: ObjectiveTable
    value: float = 0.0
    rows: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, views: Examples, value: float, start: Tensor | None = None, incentive: Tensor | None = None) -> None:
        """A pack. value: sum of its examples' weighted values; start, incentive: (responses,) or None."""
        self.value += value
        self.rows += len(views.groups)
        scores = views.responses
        for side, (places, weight) in zip(("chosen", "rejected"), views.side_index, strict=True):
            mine = scores[places]
            measured = {"logp": mine.logp, "mean_logp": mine.mean_logp, "tokens": mine.tokens}
            if (reward := rewards(self.objective, mine)) is not None:
                measured["reward"] = reward
            if start is not None:
                measured["logp_change"] = mine.logp - start[places]
            if incentive is not None:
                measured["incentive"] = incentive[places]
            for name, values in measured.items():
                self._add(f"{side}_{name}", values, weight)
        if len(views.pair_index[0]):
            weight = judged(views)
            self._add("margin", margins(views), views.pairs.weight)
            self._add("accuracy", right_of(views, self.objective), weight)
            self._add("accuracy_per_token", ranked_right(margins_per_token(views), TIE / 100), weight)
        if views.mismatched is not None:
            ratio = views.mismatched.log_ratio
            if len(ratio):
                self._add("drift", ratio.mean().clamp(min=0), ratio.new_ones(()))
            if len(ratio) > 1:
                self._add("drift_error", ratio.std() / len(ratio) ** 0.5, ratio.new_ones(()))

    def _add(self, name: str, values: Tensor, weight: Tensor) -> None:
        held = self.sums.setdefault(name, [0.0, 0.0])
        held[0] += float((values * weight).sum())
        held[1] += float(weight.sum())

    def means(self, names: list[str]) -> Values:
        """The meters of these names, null where nothing was measured."""
        found: Values = dict.fromkeys(names)
        found |= {name: total / weight for name, (total, weight) in self.sums.items() if weight and name in found}
        if "loss" in found and self.rows:
            found["loss"] = self.value / self.rows
        return found


def margins(views: Examples) -> Tensor:
    """(pairs,) log-ratio of the better minus the worse, in nats; of logp where there is no reference."""
    pairs = views.pairs
    return pairs.chosen.logp - pairs.rejected.logp if pairs.chosen.reference is None else pairs.margin


def margins_per_token(views: Examples) -> Tensor:
    """(pairs,) the same of means over tokens, in nats a token."""
    a, b = (
        side.mean_logp if side.reference is None else side.mean_log_ratio
        for side in (views.pairs.chosen, views.pairs.rejected)
    )
    return a - b


def right_of(views: Examples, objective: ObjectiveTable) -> Tensor:
    """(pairs,) 1 where the number that the objective goes by ranks the pair right, one half at a tie."""
    if all(part.length_normalized for _, part in parts(objective)):
        return ranked_right(margins_per_token(views), TIE / 100)
    return ranked_right(margins(views))


def judged(views: Examples) -> Tensor:
    """(pairs,) weights, 0 where the votes are even: there neither order is right."""
    return views.pairs.weight * (views.pairs.preferred != 0.5)


def ranked_right(margin: Tensor, tie: float = TIE) -> Tensor:
    """1 where the margin is above 0, one half where it is 0 but for what `tie` allows."""
    return (margin > tie).to(margin) + 0.5 * (margin.abs() <= tie).to(margin)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's, ties sharing their mean rank; None where either is constant."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]

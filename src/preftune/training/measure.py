"""Meters of a step or an evaluation: weighted sums over packs, one division at the end."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
from torch import Tensor

from preftune.objective import Objective, parts
from preftune.objective.arrange import Views

Values = dict[str, float | None]


def beta_of(objective: Objective) -> float | None:
    """The factor from log-ratio to reward: the first `beta` of an objective that uses a reference."""
    for _, part in parts(objective):
        beta = msgspec.structs.asdict(part).get("beta")
        if part.reference and beta is not None:
            return float(beta)
    return None


@dataclass
class Sums:
    """Weighted sums of each meter and of its weights."""

    objective: Objective
    value: float = 0.0
    rows: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, views: Views, value: float, start: Tensor | None = None, incentive: Tensor | None = None) -> None:
        """A pack. value: sum of its examples' weighted values; start, incentive: (responses,) or None."""
        self.value += value
        self.rows += len(views.groups)
        scores = views.scores
        for side, (places, weight) in zip(("chosen", "rejected"), views.sides, strict=True):
            mine = scores[places]
            measured = {"logp": mine.logp, "mean_logp": mine.mean_logp, "tokens": mine.tokens}
            if mine.reference is not None and (beta := beta_of(self.objective)) is not None:
                measured["reward"] = beta * mine.log_ratio
            if start is not None:
                measured["logp_change"] = mine.logp - start[places]
            if incentive is not None:
                measured["incentive"] = incentive[places]
            for name, values in measured.items():
                self._add(f"{side}_{name}", values, weight)
        if len(views.compared[0]):
            margin = margins(views)
            self._add("margin", margin, views.pairs.weight)
            self._add("accuracy", (margin > 0).to(margin) + 0.5 * (margin == 0).to(margin), views.pairs.weight)

        if views.mismatched is not None and len(ratio := views.mismatched.log_ratio):
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


def margins(views: Views) -> Tensor:
    """(pairs,) log-ratio of the better minus the worse, in nats; of logp where there is no reference."""
    pairs = views.pairs
    return pairs.chosen.logp - pairs.rejected.logp if pairs.chosen.reference is None else pairs.margin


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's, ties sharing their mean rank; None where either is constant."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]

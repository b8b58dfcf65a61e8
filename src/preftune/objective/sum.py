"""Weighted sums of objectives. Whoever takes an objective apart does it with `parts`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta
from msgspec.structs import replace

import preftune.objective as objectives  # the list of them, which is whole by the time that a configuration is read
from preftune.objective.base import ObjectiveTable, PairFormula, RankingFormula, RatingFormula
from preftune.objective.responses import Pairs, Rankings, Ratings, joined

if TYPE_CHECKING:
    from torch import Tensor


class Sum(ObjectiveTable, frozen=True, tag="sum"):
    """A weighted sum of objectives, computed from the same scores."""

    paper = "2404.19733 (DPO and imitation), 2411.10442 (three parts)"
    formula = r"\sum_k w_k l_k"
    optimum = "a compromise between those of the parts"
    when = "A preference objective needs a second force, most often imitation of chosen."
    fails = "Weights compare values, not gradients: 0.1 a nat of DPO and 1 a token of imitation are of like size."

    parts: Annotated[tuple[objectives.Single, ...], Meta(min_length=1, description="The objectives, each a table.")]
    weights: Annotated[
        tuple[float, ...] | None, Meta(description="Factor of each part, in their order; 1 each if not given.")
    ] = None

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a sum needs at least one part")
        if any(isinstance(part, Sum) for part in self.parts):
            raise ValueError("a sum cannot stand in a sum; list its parts in one")
        if self.weights is not None and len(self.weights) != len(self.parts):
            raise ValueError(f"{len(self.parts)} parts need as many weights, not {len(self.weights)}")
        if self.weights is not None and not all(0 < weight < float("inf") for weight in self.weights):
            raise ValueError("each weight must be a number above 0; leave a part out instead of giving it 0")

    @property
    def variant(self) -> str:
        return " · ".join(part.variant for part in self.parts if part.variant)

    def with_data_defaults(self, good: float, bad: float) -> Sum:
        return replace(self, parts=tuple(part.with_data_defaults(good, bad) for part in self.parts))

    def __call__(self, pairs: Pairs) -> Tensor:
        """(pairs,) the weighted sum a pair; parts of another kind see each pair as their own kind of example."""
        return sum((weight * value_of_pairs(part, pairs) for weight, part in parts(self)), pairs.weight.new_zeros(()))


def parts(objective: objectives.Objective) -> list[tuple[float, objectives.Single]]:
    """The objectives that are summed, each with its factor; a single objective has factor 1."""
    if not isinstance(objective, Sum):
        return [(1.0, objective)]
    return list(zip(objective.weights or (1.0,) * len(objective.parts), objective.parts, strict=True))


def value_of_pairs(part: objectives.Single, pairs: Pairs) -> Tensor:
    """(pairs,) what an objective of any kind says of pairs: as demos, two ratings of half the weight, or a ranking."""
    if isinstance(part, PairFormula):
        return part(pairs)
    if isinstance(part, RankingFormula):
        return part(as_rankings(pairs))
    if isinstance(part, RatingFormula):
        return part(as_ratings(pairs)).view(2, -1).mean(0)
    return part(pairs.demos)


def as_ratings(pairs: Pairs) -> Ratings:
    """All chosen responses as good ones, then all rejected as bad, each with half of its pair's weight."""
    import torch

    good = torch.arange(2 * len(pairs.weight), device=pairs.weight.device) < len(pairs.weight)
    return Ratings(joined((pairs.chosen, pairs.rejected)), good, pairs.weight.repeat(2) / 2)


def as_rankings(pairs: Pairs) -> Rankings:
    """Each pair as a ranking of two, its responses side by side."""
    import torch

    count = len(pairs.weight)
    interleaved = torch.arange(2 * count, device=pairs.weight.device).view(2, count).t().reshape(-1)
    group = torch.arange(count, device=pairs.weight.device).repeat_interleave(2)
    rank = torch.tensor([1, 2], device=pairs.weight.device).repeat(count)
    return Rankings(joined((pairs.chosen, pairs.rejected))[interleaved], group, rank, pairs.weight)

"""Weighted sums of objectives. Whoever takes an objective apart does it with `parts`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

import preftune.objective as objectives  # the list of them, which is whole by the time that a configuration is read
from preftune.objective.base import ObjectiveTable, PairFormula, RankingFormula, RatingFormula
from preftune.objective.scores import Pairs, Rankings, Ratings, Scores

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
    return Ratings(_joined(pairs), good, pairs.weight.repeat(2) / 2)


def as_rankings(pairs: Pairs) -> Rankings:
    """Each pair as a ranking of two, its responses side by side."""
    import torch

    count = len(pairs.weight)
    interleaved = torch.arange(2 * count, device=pairs.weight.device).view(2, count).t().reshape(-1)
    group = torch.arange(count, device=pairs.weight.device).repeat_interleave(2)
    rank = torch.tensor([1, 2], device=pairs.weight.device).repeat(count)
    return Rankings(_joined(pairs)[interleaved], group, rank, pairs.weight)


def _joined(pairs: Pairs) -> Scores:
    import torch

    def join(first: Tensor | None, second: Tensor | None) -> Tensor | None:
        return None if first is None or second is None else torch.cat([first, second])

    chosen, rejected = pairs.chosen, pairs.rejected
    return Scores(
        torch.cat([chosen.logp, rejected.logp]),
        torch.cat([chosen.tokens, rejected.tokens]),
        join(chosen.reference, rejected.reference),
        join(chosen.score, rejected.score),
        join(chosen.sharpness, rejected.sharpness),
    )

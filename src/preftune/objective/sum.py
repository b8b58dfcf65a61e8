"""Weighted sums of objectives. `parts` takes any objective apart; the loss adds the parts up (forward/loss.py)."""

from __future__ import annotations

from typing import Annotated, cast

from msgspec import Meta
from msgspec.structs import replace

import preftune.objective as objectives  # the list is complete by the time that a configuration is read
from preftune.objective.base import Formula, ObjectiveTable
from preftune.table import about


class Sum(ObjectiveTable, frozen=True, tag="sum"):
    """A weighted sum of objectives, computed from the same log-probabilities."""

    paper = "2404.19733 (DPO and imitation), 2411.10442 (three parts)"
    formula = r"\sum_k w_k l_k"
    optimum = "a compromise between those of the parts"
    when = "A preference objective needs a second force, most often imitation of chosen."
    fails = "Weights compare values, not gradients: 0.1 a nat of DPO and 1 a token of imitation are of like size."

    parts: Annotated[tuple[objectives.Single, ...], Meta(min_length=1, description="The objectives, each a table.")]
    weights: Annotated[
        tuple[float, ...] | None,
        about("Factor of each part, in their order; 1 each if not given.", also="loss_weights dpo_loss_weights"),
    ] = None

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a sum needs at least one part")
        if any(isinstance(part, Sum) for part in self.parts):
            raise ValueError("a sum cannot stand in a sum; list its parts in one")
        if len({part.of_scores for part in self.parts}) > 1:
            raise ValueError("a sum has parts of one kind of model: scores, as of reward, or log-probabilities")
        if self.weights is not None and len(self.weights) != len(self.parts):
            raise ValueError(f"{len(self.parts)} parts need as many weights, not {len(self.weights)}")
        if self.weights is not None and not all(0 < weight < float("inf") for weight in self.weights):
            raise ValueError("each weight must be a number above 0; leave a part out instead of giving it 0")

    @property
    def variant(self) -> str:
        return " · ".join(part.variant for part in self.parts if part.variant)

    def with_data_defaults(self, good: float, bad: float) -> Sum:
        return replace(self, parts=tuple(part.with_data_defaults(good, bad) for part in self.parts))


def parts(objective: ObjectiveTable) -> list[tuple[float, Formula]]:
    """The objectives that are summed, each with its factor; a single objective has factor 1."""
    if not isinstance(objective, Sum):
        return [(1.0, cast(Formula, objective))]
    return list(zip(objective.weights or (1.0,) * len(objective.parts), objective.parts, strict=True))


def of_scores(objective: ObjectiveTable) -> bool:
    """Whether the model says a score of each response, and not log-probabilities."""
    return all(part.of_scores for _, part in parts(objective))


def uses_reference(objective: ObjectiveTable) -> bool:
    """Whether any part of it reads the reference."""
    return any("reference" in part.reads for _, part in parts(objective))

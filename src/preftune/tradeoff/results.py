"""What the comparison measured, as plain values: a file of them is all that its page and its table are made from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from preftune.record.statistics import student_quantile

JUDGED, MODELED, TRUE = "judged pairs", "reward model", "true reward"  # what a method learns from


class Mean(Struct, frozen=True):
    """A mean over independent runs, and half of its 95 % interval by Student's t; half is 0 for what is exact."""

    value: float
    half: float

    def text(self, digits: int = 2) -> str:
        return f"{self.value:.{digits}f} ± {self.half:.{digits}f}" if self.half else f"{self.value:.{digits}f}"


def mean(runs: np.ndarray | Sequence[float]) -> Mean:
    """Of one number a run."""
    values = np.asarray(runs, dtype=np.float64)
    if len(values) < 2 or float(np.ptp(values)) < 1e-12:
        return Mean(float(values.mean()), 0.0)
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return Mean(float(values.mean()), student_quantile(0.975, len(values) - 1) * error)


class Outcome(Struct, frozen=True):
    """Where a method ended. kl: nats from the reference; reward: the true one; gap: what the best policy of that KL has
    more; beta: None where it has none; source: what it learned from; limit: an exact optimum or bound, not trained."""

    method: str
    source: str
    beta: float | None
    kl: Mean
    reward: Mean
    gap: Mean
    limit: bool = False


class Course(Struct, frozen=True):
    """KL(pi, pi*) in nats after some of the phases, the mean over runs and prompts."""

    method: str
    phases: list[int]
    distance: list[float]


class Rare(Struct, frozen=True):
    """How much of the answers that the reference hardly ever gives a method found. pairs: judged of a prompt."""

    method: str
    pairs: int | None
    share: Mean
    gap: Mean


class Shift(Struct, frozen=True):
    """A reward model on pairs of the reference (before) and of the policy that it made (after).

    right: share of pairs ordered as the true reward orders them; error: expected calibration error; claimed, true: gain
    in reward from the reference to that policy, by the model and in truth.
    """

    model: str
    right_before: Mean
    right_after: Mean
    error_before: Mean
    error_after: Mean
    claimed: Mean
    true: Mean


class Spread(Struct, frozen=True):
    """The gap over a grid of settings."""

    method: str
    settings: int
    best: float
    median: float
    worst: float


class Cost(Struct, frozen=True):
    """What a method needs, counted. models: held at once; keys: of its objective; pairs, draws: judged and drawn of a
    prompt; updates: of the policy."""

    method: str
    models: list[str]
    keys: int
    pairs: int
    draws: int
    updates: int


class Ceiling(Struct, frozen=True):
    """The best policy at a beta."""

    beta: float
    kl: float
    reward: float


class Trained(Struct, frozen=True):
    """A run of the readable world: where it ended, the models that it held at once, and its seconds of one core."""

    outcome: Outcome
    models: list[str]
    seconds: float


class Language(Struct, frozen=True):
    """The readable world. beta: of every method; pairs: judged; phases, drawn: of each online run; start: the
    reference's reward; slope: of the reward model's scores on the true reward; accuracy: of its held-out pairs;
    seconds: of one core."""

    beta: float
    pairs: int
    phases: int
    drawn: int
    start: Mean
    ceiling: list[Ceiling]
    trained: list[Trained]
    best_of: list[Outcome]
    slope: float
    accuracy: float
    seconds: float


class Results(Struct, frozen=True):
    """Everything. frontier: the methods at three betas; objectives: all that learn from pairs, at one beta; rounds: a
    second round of pairs; weak: by how far the reference was turned away; noise: slope of the margin on the reward by
    the share of wrong labels, over 1 / beta; seconds: of one core, for the exact world; language: the readable
    world, unless it was left out."""

    runs: int
    beta: float
    pairs: int
    ceiling: list[Ceiling]
    frontier: list[Outcome]
    objectives: list[Outcome]
    courses: list[Course]
    rare: list[Rare]
    rare_before: float
    rare_best: float
    shift: list[Shift]
    rounds: list[Outcome]
    weak: list[tuple[float, list[Outcome]]]
    noise: list[tuple[float, dict[str, Mean]]]
    sensitivity: list[Spread]
    costs: list[Cost]
    seconds: float
    language: Language | None = None

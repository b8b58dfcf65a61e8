"""Which evaluation of a run is its best, by the figure that tells a run's result.

Nothing else remembers it: whoever asks reads the evaluations again, so that a run which was killed and resumed answers
as one that nothing has interrupted. Held by tests/laws/test_best.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from preftune.events import Happened
    from preftune.record.parse import Numbers
    from preftune.record.reader import Record

Figure = Literal["score", "accuracy", "loss"]
SIGNS: dict[Figure, int] = {"score": 1, "accuracy": 1, "loss": -1}  # 1 where more is better
ENDINGS = ("stopped_early", "best")  # kinds of events
Evaluations = Sequence[Mapping[str, object]]  # lines of evaluations.jsonl, in order of step


class Best(NamedTuple):
    """step: updates before the evaluation; value: its figure; later: evaluations after it, none of which is better."""

    figure: Figure
    step: int
    value: float
    later: int


def figure_of(evaluation: Mapping[str, object]) -> Figure:
    """The figure that tells the result: the score of what is drawn, else the accuracy of what is ranked, else the
    loss."""
    for name in SIGNS:
        if evaluation.get(name) is not None:
            return name
    return "loss"


def best_of(evaluations: Evaluations, by: Figure | None = None) -> Best:
    """The best evaluation after an update, by this figure or the one that tells the result.

    Of equal ones the first is the best, and one whose figure is not finite is never better. Where no figure is finite,
    the step is 0.
    """
    after = [line for line in evaluations if number_of(line, "step") > 0]
    figure = by or figure_of(after[0] if after else {})
    finite = [line for line in after if math.isfinite(number_of(line, figure))]
    best = max(finite, key=lambda line: SIGNS[figure] * number_of(line, figure), default={"step": 0})
    step = int(number_of(best, "step"))
    return Best(figure, step, number_of(best, figure), sum(number_of(line, "step") > step for line in after))


def outcome(record: Record) -> dict[str, Happened]:
    """What the end of a run says of it, by kind: that it ended early, and which step's model it has exported."""
    last = record.steps[-1]["step"] if record.steps else 0
    return {event.kind: event for event in record.events if event.kind in ENDINGS and event.step == last}


def evaluation_of_model(record: Record) -> Numbers:
    """The evaluation of the model that a run has exported: the last one, or the best where that was exported; empty
    where there was none."""
    best = outcome(record).get("best")
    return next((line for line in record.evaluations if best and line["step"] == best.details["of"]), record.end)


def until(evaluations: Evaluations, step: int) -> list[Mapping[str, object]]:
    """The evaluations of the first so many updates."""
    return [line for line in evaluations if number_of(line, "step") <= step]


def number_of(line: Mapping[str, object], name: str) -> float:
    """NaN for what is none, such as null or one of the words that stand for NaN and infinity."""
    value = line.get(name)
    return float(value) if isinstance(value, int | float) else math.nan

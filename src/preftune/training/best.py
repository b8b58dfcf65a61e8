"""The best evaluation of a run, as its record has it: which weights are kept and exported, and when training ends.

Held by tests/laws/test_best.py.
"""

from __future__ import annotations

from typing import NamedTuple

from preftune import folders
from preftune.errors import CORRUPT, UserError
from preftune.events import Happened, emit
from preftune.record.best import Best, Evaluations, best_of, number_of, until
from preftune.record.replace import EVALUATIONS
from preftune.record.terminal import summary
from preftune.record.writer import RecordWriter
from preftune.training.checkpoint import State, path_of
from preftune.training.state_of_ranks import read_weights
from preftune.training.update import Training


class Standing(NamedTuple):
    """What an evaluation decides. better: it is the best so far, so its weights are kept; over: training ends here."""

    better: bool = False
    over: bool = False


def standing(training: Training, step: int, evaluations: Evaluations) -> Standing:
    """What the evaluation after `step` updates decides, from all up to it; nothing where there is none."""
    patience, lines = training.evaluate.patience, until(evaluations, step)
    if not step or not lines or lines[-1]["step"] != step:
        return Standing()
    best = best_of(lines, training.evaluate.best_by)
    over = patience is not None and best.later >= patience and step < training.source.steps
    return Standing(training.save.best and best.step == step, over)


def agreed(training: Training, step: int, evaluations: Evaluations) -> Standing:
    """The standing by what the first rank reads; the evaluations of others are ignored. All ranks come here."""
    if not (training.save.best or training.evaluate.patience):
        return Standing()
    own = standing(training, step, evaluations)
    return Standing(*(bool(training.dist.broadcast_int(answer)) for answer in own))


def best_saved(training: Training, record: RecordWriter, step: int) -> Best | None:
    """The best evaluation of the first `step` updates, whose checkpoint stays; None where none is to stay."""
    if not training.save.best:
        return None
    best = best_of(until(record.lines(EVALUATIONS), step), training.evaluate.best_by)
    return best if best.step else None


def refuse_lost_best(training: Training, state: State, record: RecordWriter) -> None:
    """Raise UserError where a resumed run does not have the weights of its best evaluation."""
    best = best_saved(training, record, state.step)
    if best is not None and best.step != state.step and (damage := folders.verify(path_of(state.root, best.step))):
        raise UserError(f"the best step so far is {best.step}, and its checkpoint is not whole ({damage}).",
                        location="save.best", code=CORRUPT,
                        hint="Go on without it, or start again with --force.")  # fmt: skip


def load_best(training: Training, state: State, record: RecordWriter | None) -> None:
    """Put the weights of the best evaluation into the state of every rank, and say which it is. Nothing else of the
    state changes. Raises UserError where its checkpoint cannot be read."""
    if not training.save.best:
        return
    best = None if record is None else best_saved(training, record, state.step)
    step = training.dist.broadcast_int(best.step if best is not None else state.step)
    if step != state.step:
        read_weights(state, step, training.dist)
    if record is None:
        return
    text = "no evaluation has a finite figure, so the model is that of the last step"
    if best is not None:
        lines, name = record.lines(EVALUATIONS), best.figure
        start, end = (summary({name: number_of(line, name)}) for line in (lines[0], lines[-1]))
        text = f"the model is that of step {step}, the best of {len(until(lines, state.step)) - 1} evaluations: " \
            f"{summary({name: best.value})}, after {start} before training and {end} at its end"  # fmt: skip
        text += "; other figures are of the last step" if step != state.step else ""
    emit(Happened(state.step, "best", text, {"of": step}))

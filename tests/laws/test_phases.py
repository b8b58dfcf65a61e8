"""A run may have several phases, one after the other: the loop goes over them as over one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from preftune.config.run import Run
from preftune.events import Event, Note, StepDone, listening
from preftune.pack.plan import Phase, Plan
from preftune.run.prepare import Prepared, prepare
from preftune.run.train import new_state, train
from preftune.training.loop import fit


class InTwo:
    """The steps of an offline run as two phases; the second holds groups of its own."""

    def __init__(self, phase: Phase, cut: int) -> None:
        self.whole, self.cut = phase, cut

    @property
    def steps(self) -> int:
        return len(self.whole.plan.steps)

    def phases(self, step: int) -> Iterator[Phase]:
        steps = self.whole.plan.steps
        if step < self.cut:
            yield Phase(self.whole.groups, Plan(steps[: self.cut]))
        yield Phase(list(self.whole.groups), Plan(steps[self.cut :]), first=self.cut)


def weights_after(prepared: Prepared, step: int = 0) -> dict[str, torch.Tensor]:
    state = new_state(prepared)
    state.step = step
    fit(prepared.training, state, None)
    return {name: value.clone() for name, value in state.weights.state().items()}


@pytest.mark.parametrize("cut", [1, 5])
def test_two_phases_train_as_one(run_of: Callable[..., Run], cut: int) -> None:
    run = run_of(optim__epochs=1)
    whole = weights_after(prepare(run))
    prepared = prepare(run)
    (phase,) = prepared.training.source.phases(0)
    in_two = replace(prepared, training=replace(prepared.training, source=InTwo(phase, cut)))
    done: list[Event] = []
    with listening(done.append):
        split = weights_after(in_two)
    assert all(torch.equal(whole[name], split[name]) for name in whole)
    steps = [(event.step, event.steps) for event in done if isinstance(event, StepDone)]
    assert steps == [(number, 7) for number in range(1, 8)], "their number is known before the second phase"


def test_sinks_of_the_caller_see_the_whole_run_and_one_that_fails_is_dropped(
    run_of: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Event] = []

    def failing(event: Event) -> None:
        calls.append(event)
        raise ValueError("planted")

    calls: list[Event] = []
    train(run_of(optim__epochs=1), sinks=[failing, seen.append])
    assert any(isinstance(event, Note) for event in seen), "also what was said before training"
    assert sum(isinstance(event, StepDone) for event in seen) == 7
    assert len(calls) == 1
    assert capsys.readouterr() == ("", "failing is turned off, and the run goes on: planted.\n")

"""A signal is heard in the call in which it comes, wherever a run is, and what was computed up to the last update is
saved."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from recorded import same

from preftune import events, signals
from preftune.config.run import Run
from preftune.errors import STOPPED, UserError
from preftune.events import Event, StepDone
from preftune.files import read_lines
from preftune.forward import forward, scores
from preftune.model import load
from preftune.reference import fill
from preftune.run import dataset, models, score
from preftune.run.train import train
from preftune.tokens.template import Renderer

HEARD = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]
SMALL = {"optim__epochs": 1, "batch__tokens": 60}


class Signaled:
    """Sends a signal as a part is called for the n-th time, and counts the calls that come to their end after it."""

    def __init__(self, number: int, after: int = 1) -> None:
        self.number, self.left, self.ended_after = number, after, 0

    def __call__(self, right: Callable) -> Callable:
        def signaled(*args: object, **keys: object) -> object:
            self.left -= 1
            if self.left == 0:
                send(self.number)
            result = right(*args, **keys)
            self.ended_after += self.left <= 0
            return result

        return signaled

    @contextmanager
    def ends(self) -> Iterator[None]:
        with pytest.raises(UserError, match=f"stopped by {signal.Signals(self.number).name}") as raised:
            yield
        assert raised.value.code == STOPPED
        assert self.left <= 0, "the signal was sent"
        assert not self.ended_after, "it was heard before the call in which it came was over"


PARTS = {
    "reading": (dataset, "read_rows", 1),
    "tokenizing": (Renderer, "render", 3),
    "loading the tokenizer": (dataset, "load_tokenizer", 1),
    "loading the model": (load, "_from_pretrained", 1),
    "trying the layout": (models, "verify_layout", 1),
    "scoring the reference": (fill, "read_packs", 2),
    "the first evaluation": (scores, "score_pack", 3),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_signal_is_heard_before_training(
    part: str, run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, after = PARTS[part]
    signaled = Signaled(HEARD[len(part) % len(HEARD)], after)
    monkeypatch.setattr(owner, name, signaled(getattr(owner, name)))
    with signaled.ends():
        train(run_of(**SMALL))


@pytest.mark.parametrize("number", [signal.SIGHUP])
def test_a_signal_in_an_evaluation_saves_and_resumes_to_the_same_bits(
    number: int, run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(run_of(out=str(tmp_path / "whole"), **SMALL, evaluate__every=2))
    cut, signaled, right = (
        run_of(out=str(tmp_path / "cut"), **SMALL, evaluate__every=2),
        Signaled(number),
        scores.score_pack,
    )

    def signal_from_here(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 4:
            monkeypatch.setattr(scores, "score_pack", signaled(right))

    with signaled.ends():
        train(cut, sinks=[signal_from_here])
    monkeypatch.setattr(scores, "score_pack", right)
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000004"]
    assert [line["step"] for line in read_lines(tmp_path / "cut" / "evaluations.jsonl")] == [0, 2]
    train(cut, resume=True)
    assert same(whole, tmp_path / "cut")


def test_a_signal_between_the_packs_of_a_step_saves_the_last_update_and_resumes_to_the_same_bits(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(run_of(out=str(tmp_path / "whole"), **SMALL))
    cut, signaled, right = (
        run_of(out=str(tmp_path / "cut"), **SMALL),
        Signaled(signal.SIGTERM, after=2),
        forward.score_pack,
    )

    def signal_from_here(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            monkeypatch.setattr(forward, "score_pack", signaled(right))

    with signaled.ends():
        train(cut, sinks=[signal_from_here])
    monkeypatch.setattr(forward, "score_pack", right)
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000003"]
    train(cut, resume=True)
    assert same(whole, tmp_path / "cut")


def test_a_signal_while_the_model_is_exported_leaves_a_run_that_goes_on(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from preftune.model.weights import WholeModel

    signaled = Signaled(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(WholeModel, "export", signaled(WholeModel.export))
        with signaled.ends():
            train(run_of(**SMALL))
    assert not (tmp_path / "run" / "model").exists()
    assert (train(run_of(**SMALL), resume=True) / "model" / "config.json").exists()
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".preftune")]


def test_score_hears_a_signal_too(run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    signaled = Signaled(signal.SIGHUP)
    monkeypatch.setattr(score, "evaluate", signaled(score.evaluate))
    with signaled.ends():
        score.score(run_of(**SMALL, reference__path=run_of().model.path))


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_warning_and_then_the_end_is_not_a_second_signal() -> None:
    """Clusters send SIGUSR1 and a minute later SIGTERM; a terminal that closes sends SIGHUP and SIGTERM."""
    with signals.listening() as stop:
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
            send(number)
            assert stop.asked == signal.Signals(number).name
        with pytest.raises(SystemExit) as ended:
            send(signal.SIGINT)
        assert ended.value.code == 128 + signal.SIGINT


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        with signals.listening() as stop:
            send(signal.SIGHUP)
            assert stop.asked == ""
            signals.check()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_all_ranks_together_stop_where_one_alone_must_not() -> None:
    with signals.listening(), signals.deferred(condition=True):
        send(signal.SIGTERM)
        signals.check()
    with signals.listening(), signals.deferred(condition=False):
        send(signal.SIGTERM)
        with pytest.raises(signals.Stopped):
            signals.check()


def test_no_library_takes_the_interruption_for_an_error_of_its_own() -> None:
    def library() -> None:
        try:
            send(signal.SIGTERM)
            time.sleep(5)
        except Exception:
            pytest.fail("a library caught it")

    with signals.listening(), pytest.raises(signals.Stopped, match="SIGTERM"):
        signals.interruptible()(library)()


def test_a_signal_of_before_ends_a_block_that_saves_nothing_at_its_beginning() -> None:
    with signals.listening():
        send(signal.SIGUSR1)
        with pytest.raises(signals.Stopped):
            signals.interruptible()(lambda: pytest.fail("it began"))()


def test_nothing_is_raised_where_nobody_listens() -> None:
    signals.check()
    with signals.interruptible(), signals.deferred(condition=True), events.silence():
        pass

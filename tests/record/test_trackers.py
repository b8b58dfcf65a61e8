"""Each tracker gets the metrics by its own library, goes on after a resume, and never stops a run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from preftune.errors import UserError
from preftune.events import Evaluated, Event, Happened, Note, StepDone, emit, listening
from preftune.record import trackers
from preftune.record.config import Track
from preftune.record.trackers import Tracker, assert_ready, guarded, tracking

SCRIPT = Path(__file__).with_name("tracked.py")
ENDINGS = {
    "tensorboard": ("killed", "finished"),
    "trackio": ("stopped", "finished"),
    "wandb": ("failed", "finished"),
    "mlflow": ("failed", "stopped"),
}


@pytest.mark.parametrize("name", trackers.OPEN)
def test_a_resumed_run_goes_on_in_each_tracker(name: str, tmp_path: Path) -> None:
    """In processes of their own, offline, beside this file."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    offline = {
        "HOME": str(tmp_path),
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    command = [sys.executable, str(SCRIPT), name, *ENDINGS[name]]
    process = subprocess.run(command, cwd=tmp_path, env=os.environ | offline, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    left = json.loads(process.stdout.partition("READ ")[2])
    points: dict[str, dict[int, float]] = {}
    for key, step, value in left["points"]:
        points.setdefault(key, {})[step] = float(value)
    loss = points["train/loss"]
    assert math.isnan(loss.pop(7))
    assert loss == pytest.approx({step: 1 / step for step in range(1, 7)})
    assert not math.isfinite(points["train/grad_norm"][7])
    assert points["train/examples"][6] == 8
    assert points["evaluate/accuracy"] == {0: 0.5, 4: 0.75, 6: 0.75} if name != "tensorboard" else {0: 0.5, 6: 0.75}
    assert "train/drift" not in points
    assert left["runs"] == 1
    assert float(left["beta"]) == 0.1
    assert left.get("status", "KILLED") == "KILLED"


class Library:
    """A tracker that fails at one of its calls."""

    def __init__(self, fails_at: str) -> None:
        self.fails_at = fails_at
        self.calls: list[object] = []

    def open(self, run: trackers.TrackedRun) -> Tracker:
        self._call("open")
        return Tracker(lambda step, metrics: self._call(step), lambda code: self._call(f"exit code {code}"))

    def _call(self, name: object) -> None:
        self.calls.append(name)
        if str(name).startswith(self.fails_at):
            raise ConnectionError("the server has gone\nand more")


@pytest.mark.parametrize(
    ("fails_at", "calls"),
    [
        ("open", ["open"]),
        ("2", ["open", 1, 2]),
        ("exit", ["open", 1, 2, 3, "exit code 0"]),
        ("never", ["open", 1, 2, 3, "exit code 0"]),
    ],
)
def test_a_tracker_that_fails_is_turned_off_and_the_run_goes_on(
    fails_at: str, calls: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, sound = Library(fails_at), Library("never")
    monkeypatch.setattr(trackers, "OPEN", {"wandb": failing.open, "mlflow": sound.open})
    events: list[Event] = []
    with listening(events.append), tracking(Track(to=("wandb", "mlflow")), {}, tmp_path, 0):
        for step in (1, 2, 3):
            emit(StepDone(step, 3, {}))
    assert failing.calls == calls
    assert sound.calls == ["open", 1, 2, 3, "exit code 0"]
    failures = [event for event in events if isinstance(event, Happened)]
    assert [event.text for event in failures] == (
        [] if fails_at == "never" else ["wandb is turned off, and the run goes on: the server has gone."]
    )


def test_a_callable_of_the_user_gets_every_event_until_it_fails() -> None:
    received: list[Event] = []
    happened: list[Event] = []

    def sink(event: Event) -> None:
        received.append(event)
        if isinstance(event, Evaluated):
            raise KeyError("accuracy")

    with listening(happened.append, guarded(sink)):
        for event in (note := Note("loading"), done := StepDone(1, 2, {}), bad := Evaluated(1, {}), StepDone(2, 2, {})):
            emit(event)
    assert received == [note, done, bad]
    failure = next(event for event in happened if isinstance(event, Happened))
    assert (failure.step, failure.kind, failure.details) == (1, "tracker_failed", {"tracker": "sink"})


def test_a_missing_library_is_one_error_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"track\.to: wandb and trackio cannot be .*pip install wandb trackio"):
        assert_ready(Track(to=("wandb", "trackio")))
    assert_ready(None)


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_without_a_key_is_an_error_and_never_a_question(tmp_path: Path) -> None:
    script = (
        "from preftune.record.config import Track\nfrom preftune.record.trackers import assert_ready\n"
        "try: assert_ready(Track(to='wandb'))\nexcept Exception as error: print(error)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    command = [sys.executable, "-c", script]
    for mode, expected in (("online", "wandb has no API key"), ("offline", ""), ("disabled", "")):
        process = subprocess.run(
            command, env=environment | {"HOME": str(tmp_path), "WANDB_MODE": mode}, capture_output=True, text=True
        )
        assert expected in process.stdout
        assert bool(process.stdout) == bool(expected)

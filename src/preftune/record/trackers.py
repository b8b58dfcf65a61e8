"""Trackers: the metrics of a run in trackio, TensorBoard, wandb or mlflow, each written by its own library.

A tracker never stops a run: after the first exception of its library it is turned off, and the record says why.
Held by tests/record/test_trackers.py, with the real libraries.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

from preftune import files
from preftune.errors import STOPPED, UserError, third_party_message
from preftune.events import Evaluated, Event, Happened, Note, PhaseDrawn, Progress, Sink, StepDone, emit, listening
from preftune.record.config import Track

ID_FILE = "track.json"
P = ParamSpec("P")
T = TypeVar("T")


class TrackedRun(NamedTuple):
    """What a tracker gets when it opens. configuration: by dotted keys; resumed_at: updates done before, 0 if new.

    id: the same before and after a resume, and no other run's.
    """

    project: str
    name: str
    id: str
    out: Path
    configuration: Mapping[str, object]
    resumed_at: int


class Tracker(NamedTuple):
    """An open run of one library. log: takes a step and its metrics; close: takes the process's exit code."""

    log: Callable[[int, dict[str, float]], object]
    close: Callable[[int], object]


def _tensorboard(run: TrackedRun) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    # what an earlier process wrote after the checkpoint that this one goes on from is hidden
    writer = SummaryWriter(run.out / "tensorboard", purge_step=run.resumed_at + 1 if run.resumed_at else None)
    if not run.resumed_at:
        table = "".join(f"| {key} | {value} |\n" for key, value in run.configuration.items())
        writer.add_text("configuration", f"| key | value |\n|---|---|\n{table}")

    def log(step: int, metrics: dict[str, float]) -> None:
        for key, value in metrics.items():
            writer.add_scalar(key, value, step)

    return Tracker(log, lambda code: writer.close())


def _trackio(run: TrackedRun) -> Tracker:
    import trackio  # pyright: ignore[reportMissingImports]

    name = f"{run.name}-{run.id}"  # a run of trackio is found again by its name alone
    config = dict(run.configuration)
    with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to the verb
        handle = trackio.init(project=run.project, name=name, config=config, resume="allow", embed=False)

    def close(code: int) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            trackio.finish()  # and not handle.finish(), which trackio would call again when Python ends

    return Tracker(lambda step, metrics: handle.log(metrics, step=step), close)


def _wandb(run: TrackedRun) -> Tracker:
    import wandb  # pyright: ignore[reportMissingImports]

    handle = wandb.init(
        project=run.project, name=run.name, id=run.id, resume="allow", config=dict(run.configuration),
        dir=os.environ.get("WANDB_DIR", run.out), settings=wandb.Settings(console="off", login_timeout=30),
    )  # fmt: skip
    # wandb's own counter only goes up, and would drop the steps that a resumed run does again
    handle.define_metric("step", hidden=True)
    handle.define_metric("*", step_metric="step")

    def log(step: int, metrics: dict[str, float]) -> None:
        handle.log({**metrics, "step": step})

    return Tracker(log, lambda code: handle.finish(exit_code=code))


def _mlflow(run: TrackedRun) -> Tracker:
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
    from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

    client = MlflowClient()  # and not mlflow.start_run, which would end or nest in a run of the caller's
    experiment = client.get_experiment_by_name(run.project)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(run.project)
    known = client.search_runs([experiment_id], f"tags.`preftune.id` = '{run.id}'")
    if known:
        run_id = known[0].info.run_id
        client.update_run(run_id, status="RUNNING")
    else:
        run_id = client.create_run(experiment_id, run_name=run.name, tags={"preftune.id": run.id}).info.run_id
        params = [Param(key, str(value)) for key, value in run.configuration.items()]
        for start in range(0, len(params), 100):  # as many as one call may have
            client.log_batch(run_id, params=params[start : start + 100])
    pending = deque(maxlen=100)  # the last ones are enough to learn that a server has gone

    def log(step: int, metrics: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        # mlflow 3.17.2 gives an infinity back as the greatest finite number: a run that diverged would look finite
        sound = {key: math.nan if math.isinf(value) else value for key, value in metrics.items()}
        batch = [Metric(OF_MLFLOW.sub("_", key), value, now, step) for key, value in sound.items()]
        pending.append(client.log_batch(run_id, metrics=batch, synchronous=False))

    def close(code: int) -> None:
        for operation in pending:
            operation.wait()
        client.set_terminated(run_id, {0: "FINISHED", STOPPED: "KILLED"}.get(code, "FAILED"))

    return Tracker(log, close)


OF_MLFLOW = re.compile(r"[^\w\-. :/]")  # what its names of metrics may not hold, as those of rewards may

OPEN: dict[str, Callable[[TrackedRun], Tracker]] = {
    "trackio": _trackio,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def assert_ready(track: Track | None) -> None:
    """Raise UserError where a tracker's library is missing or wants a login: before a model is loaded, not after."""
    names = track.names if track else ()
    if missing := [name for name in names if find_spec(name) is None]:
        hint = f"Install it: pip install {' '.join(missing)}"
        raise UserError(f"{' and '.join(missing)} cannot be imported.", location="track.to", hint=hint)
    if "wandb" in names and not _wandb_can_log_in():
        hint = "Use `wandb login` first, or set WANDB_MODE=offline."
        raise UserError("wandb has no API key.", location="track.to", hint=hint)


def _wandb_can_log_in() -> bool:
    import wandb  # pyright: ignore[reportMissingImports]

    try:
        return wandb.setup().settings.mode != "online" or wandb.login(prompt=False)
    except Exception:  # the key could not be verified; wandb.init tries once more, and its failure stops no run
        return True


@contextlib.contextmanager
def tracking(track: Track | None, configuration: Mapping[str, object], out: Path, resumed_at: int) -> Iterator[None]:
    """Let every tracker of [track] receive the metrics of this block, and close it when the block ends or fails.

    configuration: the run's, by dotted keys. resumed_at: updates done before this process, 0 for a new run.
    """
    if track is None:
        yield
        return
    run = TrackedRun(track.project, track.name or out.resolve().name, _id(out), out, configuration, resumed_at)
    opened: list[tuple[Guard, Tracker]] = []
    for name in track.names:
        guard = Guard(name, resumed_at)
        if (tracker := guard(OPEN[name], run)) is not None:
            opened.append((guard, tracker))
    code = 1
    try:
        with listening(*(_metrics_sink(guard, tracker) for guard, tracker in opened)):
            yield
        code = 0
    except UserError as error:
        code = error.code
        raise
    finally:
        for guard, tracker in opened:
            guard(tracker.close, code)


PREFIXES: dict[type, str] = {StepDone: "train", Evaluated: "evaluate", PhaseDrawn: "phase"}


def _metrics_sink(guard: Guard, tracker: Tracker) -> Sink:
    def receive(event: Event) -> None:
        if isinstance(event, StepDone | Evaluated | PhaseDrawn):
            guard.step = event.step
            prefix = PREFIXES[type(event)]
            numbers = {key: value for key, value in event.metrics.items() if key != "step" and value is not None}
            guard(tracker.log, event.step, {f"{prefix}/{key}": float(value) for key, value in numbers.items()})

    return receive


def guarded(sink: Sink) -> Sink:
    """A sink that never stops a run, made of one that may raise, such as a function of the caller's."""
    guard = Guard(getattr(sink, "__name__", type(sink).__name__))

    def receive(event: Event) -> None:
        if not isinstance(event, Progress | Note):
            guard.step = event.step
        failed = guard.failed
        guard(sink, event)
        if guard.failed and not failed:  # it may stand in the terminal's place, and the record may not be there yet
            sys.stderr.write(f"{guard.failed}\n")

    return receive


class Guard:
    """Calls functions of one tracker. After the first exception it calls nothing more, and the record says why."""

    def __init__(self, name: str, step: int = 0) -> None:
        self.name, self.step, self.failed = name, step, ""

    def __call__(self, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T | None:
        if self.failed:
            return None
        try:
            return function(*arguments, **keywords)
        except Exception as error:
            self.failed = f"{self.name} is turned off, and the run goes on: {third_party_message(error)}"
            emit(Happened(self.step, "tracker_failed", self.failed, {"tracker": self.name}))
            return None


def _id(out: Path) -> str:
    """What all trackers know this run by; made once for each record."""
    path = out / ID_FILE
    if not path.exists():
        files.write_json(path, {"id": secrets.token_hex(4)})
    return str(json.loads(path.read_text())["id"])

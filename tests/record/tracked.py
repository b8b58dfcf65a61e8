"""What tests/record/test_trackers.py runs in processes of their own: a run with one tracker, and what it left."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from preftune.errors import STOPPED, UserError
from preftune.events import Evaluated, Event, Happened, StepDone, emit, listening
from preftune.record.config import Track
from preftune.record.trackers import tracking

OUT = Path("out")
CONFIGURATION = {"objective.beta": 0.1, "reference.path": None, "data.train": "x" * 700}


def write(name: str, resumed_at: int, last: int, ending: str) -> None:
    """Steps after `resumed_at` up to `last`. ending: finished, failed, stopped or killed."""

    def show(event: Event) -> None:
        if isinstance(event, Happened):
            print(event.text)

    with listening(show), tracking(Track(to=name, name="mine"), CONFIGURATION, OUT, resumed_at):
        if not resumed_at:
            emit(Evaluated(0, {"step": 0, "accuracy": 0.5, "drift": None}))
        for step in range(resumed_at + 1, last + 1):
            emit(StepDone(step, 6, {"step": step, "loss": 1 / step, "examples": 8, "drift": None}))
        emit(StepDone(last + 1, 6, {"loss": float("nan"), "grad_norm": float("inf")}))
        emit(Evaluated(last, {"accuracy": 0.75}))
        if ending == "stopped":
            raise UserError("stopped", code=STOPPED)
        if ending == "failed":
            raise ZeroDivisionError
        if ending == "killed":
            time.sleep(2)  # what a library has not yet written dies with the process
            os._exit(9)


def tensorboard() -> dict[str, object]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(OUT / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    points = [(key, event.step, event.value) for key in tags["scalars"] for event in events.Scalars(key)]
    text = events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    return {"runs": 1, "points": points, "beta": "0.1" if "| objective.beta | 0.1 |" in text else text}


def trackio() -> dict[str, object]:
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_runs("preftune")
    logs = SQLiteStorage.get_logs("preftune", run)
    points = [(key, log["step"], log[key]) for log in logs for key in log if key not in ("step", "timestamp")]
    return {"runs": 1, "points": points, "beta": SQLiteStorage.get_run_config("preftune", run)["objective.beta"]}


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format behind a header of seven bytes."""
    position, record = 7, b""
    while position + 7 <= len(data):
        if (room := 2**15 - position % 2**15) < 7:  # what is left of a block is padding
            position += room
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def wandb() -> dict[str, object]:
    from wandb.proto import wandb_internal_pb2

    points, ids, beta = [], set(), None
    for path in sorted(OUT.glob("wandb/offline-run-*/*.wandb")):
        for data in log_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                beta = {item.key: item.value_json for item in record.run.config.update}["objective.beta"]
            if record.HasField("history"):
                items = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                points += [(key, items["step"], value) for key, value in items.items() if "/" in key]
    return {"runs": len(ids), "points": points, "beta": beta}


def mlflow() -> dict[str, object]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("preftune")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    run = runs[0]
    history = [m for key in run.data.metrics for m in client.get_metric_history(run.info.run_id, key)]
    points = [(metric.key, metric.step, metric.value) for metric in history]
    beta = run.data.params["objective.beta"]
    return {"runs": len(runs), "points": points, "beta": beta, "status": run.info.status}


LIBRARIES = {"tensorboard": "torch.utils.tensorboard"}  # where it is not that of the tracker's name


def main(name: str, *endings: str) -> None:
    """Write two runs, each in a process that is forked once the library is loaded, and print what they left."""
    import_module(LIBRARIES.get(name, name))
    for (resumed_at, last), ending in zip(((0, 4), (2, 6)), endings, strict=True):
        if not (child := os.fork()):
            write(name, resumed_at, last, ending)
            return
        os.waitpid(child, 0)
    print("READ", json.dumps(globals()[name]()))


if __name__ == "__main__":
    main(*sys.argv[1:])

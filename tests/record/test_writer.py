"""The record is a sink: each event is a line, and a rewind drops the lines that a checkpoint does not have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from preftune.events import Evaluated, Happened, Note, Progress, StepDone, emit, is_decided, listening, silence
from preftune.files import read_lines
from preftune.record.reader import Record
from preftune.record.writer import RecordWriter, environment, environment_changes, version_of


@pytest.fixture
def written(tmp_path: Path) -> Iterator[RecordWriter]:
    writer = RecordWriter(tmp_path)
    with listening(writer):
        emit(Note("loading"))
        emit(Evaluated(0, {"loss": 0.7}))
        for step in (1, 2, 3):
            emit(Progress("training", step, 3))
            emit(StepDone(step, 3, {"step": step, "loss": float("nan") if step == 2 else 0.5, "margin": None}))
        emit(Evaluated(3, {"loss": 0.4}))
        emit(Happened(3, "finished", "finished after 3 steps", {"rows": ["a"]}))
        with silence():
            assert is_decided()
            emit(StepDone(4, 3, {}))
    emit(StepDone(5, 3, {}))
    yield writer
    writer.close()


def test_each_event_is_a_line_of_its_file(written: RecordWriter) -> None:
    assert [*read_lines(written.path / "metrics.jsonl")[1]] == ["step", "loss", "margin"]
    (written.path / "run.toml").write_text("seed = 1")
    record = Record.open(written.path)
    assert [step["step"] for step in record.steps] == [1, 2, 3]
    assert [line["loss"] for line in record.evaluations] == [0.7, 0.4]
    (event,) = record.events
    assert event[:3] == (3, "finished", "finished after 3 steps")
    assert event.details["rows"] == ["a"]
    assert str(event.details["time"]).endswith("Z")


def test_a_rewound_record_goes_on_after_its_checkpoint(written: RecordWriter) -> None:
    written.rewind(2)
    written(StepDone(3, 3, {"loss": 0.25}))
    written.sync()
    written.close()
    assert [line["step"] for line in read_lines(written.path / "metrics.jsonl")] == [1, 2, 3]
    assert read_lines(written.path / "metrics.jsonl")[-1]["loss"] == 0.25
    assert [line["step"] for line in read_lines(written.path / "evaluations.jsonl")] == [0]
    assert len(read_lines(written.path / "events.jsonl")) == 1


def test_without_an_event_nothing_is_written(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path)
    writer.sync()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_what_may_change_the_last_digits_is_named(tmp_path: Path) -> None:
    now = environment({"data": "d"}, device="cpu", threads=1, world_size=2, seed=0)
    assert environment_changes(tmp_path, now) == []
    before = {key: value for key, value in now.items() if key != "world_size"}
    for old, changes in (
        ({**now, "data": "e", "seed": 1}, []),
        ({**before, "ranks": 2}, []),
        ({**before, "ranks": 3, "threads": 4}, ["threads 4 -> 1", "world_size 3 -> 2"]),
        (before, ["world_size 1 -> 2"]),
    ):
        (tmp_path / "environment.json").write_text(json.dumps(old))
        assert environment_changes(tmp_path, now) == changes


def test_a_checkout_that_is_not_installed_has_a_version() -> None:
    assert version_of("torch")[0].isdecimal()
    assert version_of("a-package-that-nobody-has-installed") == "source"

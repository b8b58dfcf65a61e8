"""A run folder is read whole, or refused with its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from preftune.errors import CORRUPT, USAGE, UserError
from preftune.record.reader import Record
from preftune.report.compare import seeds_note


def test_whole_record(make_record: Callable[..., Path]) -> None:
    record = Record.open(make_record(steps=60))
    assert [step["step"] for step in record.steps] == list(range(1, 61))
    assert (record.name, record.start["step"], record.end["step"]) == ("demo", 0, 60)
    assert (record.setting("objective.beta"), record.setting("objective.tau")) == (0.1, None)
    assert record.gain("margin") == record.end["margin"]
    assert record.data.train is not None
    assert record.data.train.skipped["too_long"] == 118
    assert record.events[0].details == {"tokens": 590_811}
    assert record.extras.samples[1].prompt == "Lily found a key."
    assert record.recent("loss") == pytest.approx(sum(step["loss"] or 0 for step in record.steps[-6:]) / 6)


def test_no_record(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run\.toml.*Name the `out` folder") as caught:
        Record.open(tmp_path)
    assert caught.value.code == USAGE
    assert str(tmp_path) in str(caught.value)


def test_only_the_configuration_is_needed(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("seed = 1\n")
    record = Record.open(tmp_path)
    assert (record.steps, record.evaluations, record.start, record.end) == ((), (), {}, {})
    assert record.recent("loss") is None


def test_spelled_numbers_are_floats_and_ids_are_not(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": "NaN", "grad_norm": "Infinity", "margin": null, "kind_of_later_version": "pair"}\n'
    )
    (tmp_path / "evaluation_rows.jsonl").write_text('{"id": "NaN", "margin": "-Infinity"}\n')
    record = Record.open(tmp_path)
    assert math.isnan(record.steps[0]["loss"] or 0)
    assert record.steps[0]["grad_norm"] == math.inf
    assert record.steps[0]["margin"] is None
    assert (record.rows[0].id, record.rows[0].margin) == ("NaN", -math.inf)
    assert record.recent("loss") is None, "what is no number has no mean"


def test_a_step_written_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    lines = ['{"step": 1, "loss": 3}', '{"step": 2, "loss": 2}', '{"step": 2, "loss": 1}', '{"step": 3, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [(s["step"], s["loss"]) for s in Record.open(tmp_path).steps] == [(1, 3), (2, 1)]


@pytest.mark.parametrize(
    ("name", "content", "location"),
    [
        ("run.toml", "seed = ", "run.toml"),
        ("run.toml", b"\xff\xfe", "run.toml"),
        ("data.json", "{", "data.json"),
        ("data.json", '{"train": {"read": "many"}}', "data.json"),
        ("metrics.jsonl", '{"step": 1, "loss": "low"}\n', "metrics.jsonl:1"),
        ("metrics.jsonl", '{"step": 1}\n{"loss": 1}\n', "metrics.jsonl:2"),
        ("metrics.jsonl", "{]\n{}\n", "metrics.jsonl:1"),
        ("evaluation_rows.jsonl", "[1]\n", "evaluation_rows.jsonl:1"),
        ("evaluation_rows.jsonl", '{"margin": 1}\n', "evaluation_rows.jsonl:1"),
        ("events.jsonl", '{"step": 1}\n', "events.jsonl:1"),
        ("environment.json", "[]", "environment.json"),
        ("extras.json", '{"tables": [{"title": "t"}]}', "extras.json"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: str | bytes, location: str) -> None:
    (tmp_path / "run.toml").write_text("")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        Record.open(tmp_path)
    assert caught.value.code == CORRUPT
    assert caught.value.problems[0].location.endswith(location)


def test_an_old_record_is_read_and_says_what_it_cannot_tell(make_record: Callable[..., Path]) -> None:
    """It has neither places nor prompts: every row counts as a prompt of its own, and the page says so."""
    record = Record.open(make_record(steps=12))
    assert not record.knows_prompts
    accuracy = record.accuracy()
    assert accuracy is not None
    assert (accuracy.rows, accuracy.prompts) == (320, 320)
    assert "does not say which rows share a prompt" in seeds_note([record, record])

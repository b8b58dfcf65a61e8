"""Columns that functions of rewards read: a row has them as they stand there, and their names mean nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.errors import UserError
from preftune.rows.asked import Asked, all_of
from preftune.rows.read import read
from preftune.rows.row import Demo, Task

ROW = {"prompt": "2 + 2?", "solution": "4", "tests": ["a", {"b": None}], "difficulty": 2}


def test_named_columns_are_read_and_no_others() -> None:
    asked = Asked(("tests",), ("difficulty", "seconds"))
    reading = read([ROW | {"source": "x"}, {"prompt": "3?", "solution": "3", "tests": None}], asked=asked)
    first, second = reading.rows
    assert json.loads(first.columns) == {"tests": ["a", {"b": None}], "difficulty": 2}
    assert asked.from_text(first.columns) == {"tests": ["a", {"b": None}], "difficulty": 2}
    assert asked.from_text(second.columns) == {"tests": None}
    assert [note.message for note in reading.notes] == ["fields that are not used: source."]
    assert first.answer == "4"
    assert read([ROW]).rows[0].columns == ""


def test_all_columns_are_those_of_the_record_but_the_arguments() -> None:
    asked = Asked(every=True, but=("prompt", "responses", "answer"))
    (row,) = (reading := read([ROW], asked=asked)).rows
    assert asked.from_text(row.columns) == {key: ROW[key] for key in ("solution", "tests", "difficulty")}
    assert reading.notes == []
    assert Asked(optional=("tests",)).from_text(row.columns) == {"tests": ROW["tests"]}


def test_a_column_that_is_read_means_no_judgement_and_no_response() -> None:
    asked = Asked(("level", "expected_output"))
    with pytest.raises(UserError, match=r'"level" .a judgement. is not read here'):
        read([{"question": "2?", "answer": "2", "level": 3}])
    with pytest.raises(UserError, match=r'"correct" .a judgement.'):  # it may say that the answer is wrong
        read([{"question": "2?", "answer": "2", "correct": 0}], asked=Asked(drawn=True))
    (row,) = read([{"question": "2?", "answer": "2", "level": 3}], asked=Asked(drawn=True)).rows  # of no response
    assert row.answer == "2"
    (row,) = read([{"question": "2?", "answer": "2", "level": 3, "expected_output": "x"}], asked=asked).rows
    assert isinstance(row, Demo)
    (row,) = read([{"prompt": "2?", "level": 3, "expected_output": "x"}], asked=asked).rows
    assert isinstance(row, Task)
    with pytest.raises(UserError, match=r'"level" .a judgement.'):  # who takes all has not said what this one means
        read([{"question": "2?", "answer": "2", "level": 3}], asked=Asked(every=True))


def test_a_column_keeps_what_a_form_reads_of_it() -> None:
    asked = Asked(("answer", "category", "score"))
    (row,) = read([{"prompt": "2?", "ground_truth": 3, "answer": "2", "category": "x", "score": 1}], asked=asked).rows
    assert (row.answer, row.category) == ("3", "x")
    assert asked.from_text(row.columns) == {"answer": "2", "category": "x", "score": 1}
    (row,) = read([{"prompt": "2?", "gold": "2"}], columns={"gold": "answer"}, asked=Asked(("answer",))).rows
    assert json.loads(row.columns) == {"answer": "2"}


def test_a_column_that_no_row_of_a_file_has_is_an_error(tmp_path: Path) -> None:
    for name, rows in (("a", [ROW]), ("b", [{"prompt": "x", "answer": "4", "tests": None}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    with pytest.raises(UserError, match=r"b.jsonl: no row has the key tests, which a function of rewards takes. Seen: "
                                        r"prompt, answer, tests. What has a default may be missing."):  # fmt: skip
        read(files, asked=Asked(("tests",)))
    assert len(read(files, asked=Asked(optional=("tests",))).rows) == 2


def test_a_column_that_is_nothing_of_json_is_an_error() -> None:
    with pytest.raises(UserError, match=r'rows:1: "tests" holds 1 bytes that are no text, which is nothing of JSON'):
        read([ROW | {"tests": b"\xff"}], asked=Asked(("tests",)))
    assert read([ROW | {"sketch": b"\xff"}], asked=Asked(("tests",))).rows


def test_what_several_functions_read() -> None:
    together = all_of([Asked(("a",), ("b",), but=("x",)), Asked(("b",), ("c",), every=True)])
    assert together == Asked(("a", "b"), ("c",), every=True)
    assert all_of([]) == Asked()


@pytest.mark.parametrize("asked", [Asked(("code",), ("level",)), Asked(every=True)])
def test_a_function_gets_a_cell_of_a_table_as_the_text_that_it_is(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("prompt,ground_truth,code,level\n2 + 2?,04,007,1e3\n3?,3,True,\n")
    first, second = read(str(tmp_path / "t.csv"), asked=asked).rows
    assert asked.from_text(first.columns).items() >= {"code": "007", "level": "1e3"}.items()
    assert asked.from_text(second.columns)["code"] == "True"
    assert isinstance(first, Task)
    assert first.answer == "04"

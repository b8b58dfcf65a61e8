"""Rows that are Python values are read like those of a file, once, with places and a digest of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import msgspec
import numpy as np
import pytest

from preftune.errors import UserError
from preftune.rows.read import read
from preftune.rows.row import Demo, Place, Rating, Row, Task

ROWS: list[dict[str, object]] = [
    {"id": k, "prompt": f"p{k}", "completion": "b", "label": k % 2 == 0, "score": k / 4, "token_weights": [[0, 1, 0.5]]}
    for k in range(4)
]


def without_places(rows: list[Row]) -> list[Row]:
    return [msgspec.structs.replace(row, place=None) for row in rows]


def in_numpy(row: dict[str, object]) -> dict[str, object]:
    label, score = np.bool_(row["label"]), np.float32(row["score"])
    return row | {
        "id": np.int64(row["id"]),
        "label": label,
        "score": score,
        "token_weights": ([0, 1, np.float64(0.5)],),
    }


def dataset(rows: list[dict[str, object]]) -> object:
    return pytest.importorskip("datasets").Dataset.from_list(rows)


HOLDERS: dict[str, Callable[[list[dict[str, object]]], object]] = {
    "a list": list,
    "a tuple": tuple,
    "a generator": lambda rows: (row for row in rows),
    "numpy scalars": lambda rows: [in_numpy(row) for row in rows],
    "a dataset": dataset,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_rows_are_those_of_a_file(holder: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    reading, of_file = read(HOLDERS[holder](ROWS)), read(str(tmp_path / "rows.jsonl"))
    assert without_places(reading.rows) == without_places(of_file.rows)
    assert [str(row.place) for row in reading.rows] == [f"rows:{k}" for k in range(1, 5)]
    assert [type(row.score) for row in reading.rows if isinstance(row, Rating)] == [float] * 4
    assert reading.read == 4
    if holder != "a dataset":  # which writes the places of weights as fractions
        assert reading.files == read(ROWS).files
    assert len(reading.files["rows"]) == 64
    assert read(ROWS[::-1]).files != reading.files


def test_an_iterable_is_gone_through_once() -> None:
    seen = []

    def rows() -> Iterator[dict[str, object]]:
        for row in ROWS:
            seen.append(row["id"])
            yield row

    assert len(read(rows()).rows) == 4
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], "a.jsonl"], "rows:2: is the text 'a.jsonl', needs a mapping from keys to values. A pair is"),
        ((name for name in ["a.jsonl"]), "rows:1: is the text 'a.jsonl', needs a mapping"),
        ({"train": ROWS}, "rows: is an object, needs an iterable of mappings. Give a list of dicts, or one split"),
        (7, r"rows: is a number \(7\), needs an iterable"),
        ([], "rows: there are no rows"),
        ([{"prompt": "a", "chosen": "b"}], 'rows:1: "rejected" or "rejected_response" or .* is missing'),
        ([{"prompt": "\ud800", "completion": "b"}], "rows:1: a text holds half of a surrogate pair"),
        ([{"prompt": "a", "completion": "b", "x": json.loads("[" * 70 + "]" * 70)}], "rows:1: nested more than 64"),
    ],
)
def test_what_is_no_row_is_an_error_with_its_place(rows: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(rows)  # type: ignore[arg-type]


def test_a_row_that_contains_itself_is_an_error() -> None:
    row: dict[str, object] = {"prompt": "a", "completion": "b"}
    row["x"] = row
    with pytest.raises(UserError, match="rows:1: nested too deeply"):
        read([row])


def test_values_of_python_are_read_as_those_of_a_column() -> None:
    row = {"prompt": "\U0001f600", "completion": b"say", "score": Decimal("0.5"), "id": date(2024, 1, 2), "at": {1}}
    reading = read([row, row | {"id": UUID(int=1)}])
    assert [row.id for row in reading.rows] == ["2024-01-02", '"00000000-0000-0000-0000-000000000001"']
    assert reading.rows[0] == Rating(prompt="\U0001f600", response="say", good=None, score=0.5,
                                     id="2024-01-02", place=Place("rows", 1))  # fmt: skip
    assert [note.reason for note in reading.notes] == ["fields.extra", "row.duplicate"]
    with pytest.raises(UserError, match="rows:1: set stands where tools need JSON"):
        read([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "function_calls": {1}}]}])


@pytest.mark.parametrize("answer", [5, 5.5, True])
def test_an_answer_that_is_no_text_is_one_for_a_verifier_and_no_response(answer: float) -> None:
    (row,) = read([{"prompt": "2 + 3?", "answer": answer}]).rows
    assert row == Task(prompt="2 + 3?", place=Place("rows", 1), answer=json.dumps(answer))
    (row,) = read([{"prompt": "2 + 3?", "answer": "5"}]).rows
    assert isinstance(row, Demo)

"""What a Parquet file or a dataset holds is read by the types of its own schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from preftune.rows.read import read
from preftune.rows.row import Message, Pair, Rating, Row

pyarrow = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")
PAIR = {"prompt": "ask", "chosen": "say", "rejected": "no"}
TURN = {"role": "assistant", "content": "say"}


def parquet(path: Path, table: Any) -> str:
    pyarrow.parquet.write_table(table, path)
    return str(path)


def only(rows: list[Row]) -> Row:
    (row,) = rows
    return row


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    import pyarrow.parquet

    def write(schema: dict[str, Any] | None = None, **columns: list[Any]) -> str:
        arrays = {name: pyarrow.array(values, (schema or {}).get(name)) for name, values in columns.items()}
        return parquet(tmp_path / "rows.parquet", pyarrow.table(arrays))

    return write


def test_json_by_type_is_parsed_wherever_it_stands(tmp_path: Path) -> None:
    turns = [TURN, TURN | {"content": "no", "name": "x"}]  # objects of different keys, which datasets 5 keeps as JSON
    kind = datasets.Json()
    for feature, values in ((datasets.List(kind), [[turn] for turn in turns]), (kind, [[turn] for turn in turns])):
        names = {"prompt": datasets.Value("string"), "chosen": feature, "rejected": feature}
        table = datasets.Dataset.from_dict(
            {"prompt": ["ask"], "chosen": [values[0]], "rejected": [values[1]]}, features=datasets.Features(names)
        )
        table.to_parquet(tmp_path / "rows.parquet")
        for source in (str(tmp_path / "rows.parquet"), table):
            pair = only(read(source).rows)
            assert isinstance(pair, Pair)
            assert (pair.chosen, pair.rejected) == ((Message("assistant", "say"),), (Message("assistant", "no"),))


@pytest.mark.parametrize("names", [["good", "bad"], ["bad", "good"], ["no", "yes"]])
def test_a_class_is_its_name(names: list[str], tmp_path: Path) -> None:
    text = datasets.Value("string")
    features = datasets.Features({"prompt": text, "completion": text, "label": datasets.ClassLabel(names=names)})
    columns = {"prompt": ["a", "b", "c"], "completion": ["x", "y", "z"], "label": [0, 1, -1]}
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(tmp_path / "rows.parquet")
    for source in (str(tmp_path / "rows.parquet"), table):
        reading = read(source)
        expected = [name in ("good", "yes") for name in names]
        assert [row.good for row in reading.rows if isinstance(row, Rating)] == expected
        assert [problem.reason for problem in reading.skipped] == ["row.hole"]  # -1: nobody said


def test_numbers_of_any_type(file: Callable[..., str]) -> None:
    row = only(read(file(prompt=["a"], completion=["b"], score=[Decimal("1.50")], id=[date(2024, 1, 2)])).rows)
    assert isinstance(row, Rating)
    assert (row.score, row.id) == (1.5, "2024-01-02")
    reading = read(file(prompt=["a", "b"], completion=["x", "y"], score=[0.5, float("nan")]))
    assert [problem.reason for problem in reading.skipped] == ["row.hole"]


def test_maps_bytes_and_ids(file: Callable[..., str]) -> None:
    message = pyarrow.map_(pyarrow.string(), pyarrow.string())
    turns = pyarrow.list_(message)
    chosen, rejected = ([[[*turn.items()]]] for turn in (TURN, TURN | {"content": "no"}))
    schema = {"chosen": turns, "rejected": turns}
    pair = only(read(file(schema, prompt=[b"ask"], chosen=chosen, rejected=rejected, id=[{"a": 1}])).rows)
    assert isinstance(pair, Pair)
    assert (pair.prompt, pair.chosen) == ((Message("user", "ask"),), (Message("assistant", "say"),))
    assert json.loads(pair.id) == {"a": 1}


def test_pictures_in_columns_are_refused(file: Callable[..., str]) -> None:
    columns = {key: [value] for key, value in PAIR.items()}
    with pytest.raises(Exception, match=r'"image" \(a picture'):
        read(file(**columns, image=[{"bytes": b"\xff\xd8", "path": None}]))


def test_pandas_values_in_python(tmp_path: Path) -> None:
    nan = float("nan")
    assert read([PAIR | {"input": nan, "system": nan, "images": nan}]).rows == read([PAIR]).rows

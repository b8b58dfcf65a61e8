"""What a Parquet file or a dataset holds is read by the types of its own schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from preftune.errors import UserError
from preftune.rows.read import read
from preftune.rows.row import Message, Pair, Ranking, Rating, Row

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


RATINGS: dict[str, list[Any]] = {"prompt": ["a", "b"], "completion": ["x", "y"], "label": [0, 1]}


def ratings(names: list[str]) -> Any:
    text = datasets.Value("string")
    features = datasets.Features({"prompt": text, "completion": text, "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict(RATINGS, features=features)


WAYS: dict[str, Callable[[Any], Any]] = {
    "iterable": lambda table: table.to_iterable_dataset(),
    "iterable, formatted": lambda table: table.to_iterable_dataset().with_format("torch"),
    "iterable, filtered": lambda table: table.to_iterable_dataset().filter(lambda row: row["prompt"] != "c"),
    "iterables, one after the other": lambda table: datasets.concatenate_datasets([table.to_iterable_dataset()]),
    "numpy": lambda table: table.with_format("numpy"),
    "pandas": lambda table: table.with_format("pandas"),
    "mapped": lambda table: table.map(lambda row: row),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_class_is_its_name_however_the_dataset_is_held(way: str) -> None:
    for names in (["good", "bad"], ["bad", "good"]):
        rows = read(WAYS[way](ratings(names))).rows
        assert [row.good for row in rows if isinstance(row, Rating)] == [name == "good" for name in names]


def test_lists_of_classes_are_names_in_an_iterable_dataset() -> None:
    text = datasets.Value("string")
    scores = datasets.List(datasets.ClassLabel(names=["3", "1"]))
    features = datasets.Features({"prompt": text, "responses": datasets.List(text), "scores": scores})
    table = datasets.Dataset.from_dict({"prompt": ["a"], "responses": [["x", "y"]], "scores": [[0, 1]]}, features)
    for source in (table, table.to_iterable_dataset()):
        pair = only(read(source).rows)
        assert isinstance(pair, Ranking)
        assert (pair.ranks, pair.scores) == ((1, 2), (3.0, 1.0))


def test_an_iterable_dataset_without_features_is_read_as_its_rows() -> None:
    rows = datasets.IterableDataset.from_generator(lambda: iter([PAIR]))
    assert read(rows).rows == read([PAIR]).rows


def test_a_format_shows_its_columns_and_a_transform_is_refused() -> None:
    table = datasets.Dataset.from_list([PAIR | {"topic": "cats"}])
    for source, unread in (
        (table, ["fields.extra"]),
        (table.with_format("numpy"), ["fields.extra"]),
        (table.with_format("numpy", columns=list(PAIR)), []),
        (table.with_format("numpy", columns=list(PAIR), output_all_columns=True), ["fields.extra"]),
    ):
        assert [note.reason for note in read(source).notes] == unread
    with pytest.raises(UserError, match=r"with a transform, .* dataset\.map\(function, batched=True\)"):
        read(table.with_transform(lambda batch: batch))


def test_a_table_of_pandas_is_refused_with_the_way_out() -> None:
    frame = pytest.importorskip("pandas").DataFrame([PAIR])
    with pytest.raises(UserError, match=r'needs a mapping .* are table.to_dict\("records"\)'):
        read(frame)
    assert len(read(frame.to_dict("records")).rows) == 1


def test_two_columns_of_one_name_are_refused(tmp_path: Path, file: Callable[..., str]) -> None:
    import pyarrow.parquet

    one, names = pyarrow.array(["a"]), ["prompt", "chosen", "rejected", "chosen"]
    twice = pyarrow.Table.from_arrays([one, one, pyarrow.array(["b"]), pyarrow.array(["c"])], names=names)
    inner = pyarrow.StructArray.from_arrays([one, one, one], names=["role", "content", "content"])
    inside = pyarrow.table({"prompt": one, "chosen": pyarrow.ListArray.from_arrays([0, 1], inner), "rejected": one})
    for table, name in ((twice, "chosen"), (inside, "content")):
        with pytest.raises(UserError, match=f'two columns have the name "{name}"'):
            read(parquet(tmp_path / "rows.parquet", table))
    message = pyarrow.map_(pyarrow.string(), pyarrow.string())
    turns = [[[*TURN.items(), ("content", "other")]]]
    with pytest.raises(UserError, match='the key "content" stands twice'):
        read(file({"chosen": pyarrow.list_(message)}, prompt=["ask"], chosen=turns, rejected=["no"]))
    kind = pyarrow.json_(pyarrow.string())
    with pytest.raises(UserError, match='holds what is not JSON: the key "a" stands twice'):
        read(file({"id": kind}, **{key: [value] for key, value in PAIR.items()}, id=['{"a": 1, "a": 2}']))
    with pytest.raises(UserError, match='rows:1: the key "1" stands twice'):
        read([{**PAIR, 1: "a", "1": "b"}])


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view", "dictionary", "fixed"])
def test_bytes_that_are_no_text_are_no_text(kind: str, file: Callable[..., str]) -> None:
    kinds = {"fixed": pyarrow.binary(2), "dictionary": pyarrow.dictionary(pyarrow.int8(), pyarrow.binary())}
    column = kinds.get(kind) or getattr(pyarrow, kind)()
    columns = {key: [value] for key, value in PAIR.items()}
    with pytest.raises(UserError, match='"chosen" is 2 bytes that are no text, needs text'):
        read(file({"chosen": column}, **columns | {"chosen": [b"\xff\xfe"]}))
    pair = only(read(file({"chosen": column}, **columns | {"chosen": [b"no"], "rejected": ["say"]})).rows)
    assert isinstance(pair, Pair)
    assert pair.chosen == "no"
    assert only(read(file({"id": column}, **columns, id=[b"\xff\xfe"])).rows).id == "fffe"


def test_texts_of_any_arrow_type(tmp_path: Path) -> None:
    text = pyarrow.array(["say"])
    for other in (text.dictionary_encode(), text.cast(pyarrow.large_string()), text.cast(pyarrow.string_view())):
        table = pyarrow.table({"prompt": ["ask"], "chosen": other, "rejected": ["no"]})
        pair = only(read(parquet(tmp_path / "rows.parquet", table)).rows)
        assert isinstance(pair, Pair)
        assert (pair.prompt, pair.chosen, pair.rejected) == ("ask", "say", "no")


def test_python_values_that_json_cannot_hold() -> None:
    values = [(UUID(int=1), str(UUID(int=1))), (date(2024, 1, 2), "2024-01-02"), (Decimal(2), "2.0"), (b"\xff", "ff")]
    for value, expected in values:
        assert only(read([PAIR | {"id": value}]).rows).id == expected
    for key, value in (("answer", b"\xff"), ("tools", [{"name": "f", "parameters": {"default": b"\xff"}}])):
        with pytest.raises(UserError, match="1 bytes that are no text"):
            read([PAIR | {key: value}])

"""What JSON would hold: of columns of Parquet files and datasets, by the types of their schema, and of Python values.

What is JSON text by its type (`arrow.json`) is parsed; the number of a class becomes the name of the class; decimals
become numbers, maps objects, bytes text, dates and times text in ISO form, and NaN null. Held by
tests/rows/test_columns.py and tests/rows/test_python_rows.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from preftune.rows.json_text import Parsed, what_is_wrong
from preftune.rows.row import Place

if TYPE_CHECKING:
    from pyarrow import DataType, RecordBatch, Schema, Table

Convert = Callable[[Any], object]


def arrow_records(batches: Iterable[RecordBatch | Table], schema: Schema, name: str) -> Iterator[Parsed]:
    """The rows of all batches as records, and what is wrong with each."""
    features = _features(schema)
    converts = {field.name: _converter(field.type, features.get(field.name)) for field in schema}
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            try:
                value = {key: _convert(converts.get(key, _scalar), entry) for key, entry in row.items()}
            except (ValueError, RecursionError) as error:
                yield Place(name, number), None, f"{error}."
                continue
            yield Place(name, number), value, what_is_wrong(value, json.dumps(value))


def plain(value: object) -> object:
    """The value as JSON would hold it: scalars of numpy as numbers, arrays and tuples as lists, mappings as dicts, and
    others as in a column."""
    import numpy as np

    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else _scalar(value)


def _features(schema: Schema) -> Mapping[str, Any]:
    """What the library datasets wrote down about the columns."""
    try:
        return dict(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, ValueError, TypeError):
        return {}


def _convert(convert: Convert, value: object) -> object:
    return None if value is None else convert(value)


def _converter(kind: DataType, feature: object) -> Convert:
    """What turns a value of this type that is not null into one of JSON."""
    from pyarrow import types

    names = feature.get("names") if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel" else None
    if names:
        return lambda number: names[number] if 0 <= number < len(names) else None  # -1 stands where nobody said
    if getattr(kind, "extension_name", "") == "arrow.json":
        return _json
    if types.is_struct(kind):
        inner = {field.name: _converter(field.type, _inside(feature, field.name)) for field in kind}
        return lambda value: {key: _convert(inner[key], entry) for key, entry in value.items()}
    if types.is_map(kind):
        item = _converter(kind.item_type, None)
        return lambda value: {str(key): _convert(item, entry) for key, entry in value}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        entry_of = _converter(kind.value_type, _inside(feature, "feature"))
        return lambda value: [_convert(entry_of, entry) for entry in value]
    return _scalar


def _inside(feature: object, name: str) -> object:
    """The feature of an entry of a list, or of a field of a struct."""
    if isinstance(feature, Sequence) and not isinstance(feature, str):
        return feature[0] if feature else None
    return feature.get(name) if isinstance(feature, Mapping) else None


def _json(text: Any) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"a column of JSON holds what is not JSON: {error}") from error


def _scalar(value: Any) -> object:
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float | date | timedelta) and value != value:  # NaN, and NaT of pandas
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return f"({len(value)} bytes)"
    return str(value) if isinstance(value, date | time | timedelta) else value

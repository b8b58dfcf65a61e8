"""A run as a tree of plain values, with a readable text in place of what no file can hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from preftune.config.explain import from_python
from preftune.config.run import Run
from preftune.errors import UserError

Tree = dict[str, Any]
FILE_TYPES = (type(None), str, Real, os.PathLike, list, tuple, Struct)  # left to the check of types and bounds


def tree_of(run: Run) -> Tree:
    """The tree that a file with this run holds, where `(40 rows given in Python)` stands in place of rows.

    Raises UserError where a key holds what it cannot.
    """
    texts = {name: from_python()[name].recorded(value) for name, value in python_values(run).items()}
    return plain(with_values(run, texts))


def plain(holder: object, location: str = "") -> Any:
    """A run, or a value of the key at a location, as a file holds it. Raises UserError where none can."""
    try:
        return msgspec.to_builtins(holder, enc_hook=_plain)
    except _NotPlainError as error:
        (value,) = error.args
        message = f"is of type {type(value).__name__}, and a run holds text, numbers, lists and tables."
        hint = f"Write {value.__name__}(...)." if isinstance(value, type) else ""
        raise UserError(message, location=location or _place_of(value, holder), hint=hint) from None


def python_values(run: Run) -> dict[str, Any]:
    """What a run holds that no file can, by key: {"data.train": rows}. Raises UserError where a key cannot hold it."""
    values = {}
    for name, key in from_python().items():
        table, _, field = name.rpartition(".")
        value: Any = getattr(getattr(run, table, None) if table else run, field, None)  # a table may be anything yet
        if key.accepts(value):
            values[name] = value
        elif not isinstance(value, FILE_TYPES) and type(value) is not dict:
            if isinstance(value, type):
                raise UserError(f"is the class {value.__name__}.", location=name, hint=f"Write {value.__name__}(...).")
            hint = key.instead(value) or f"In Python it may be {key.meaning}."
            raise UserError(f"cannot be of type {type(value).__name__}.", location=name, hint=hint)
    return values


def with_values(run: Run, values: Mapping[str, Any]) -> Run:
    """The run with these values at these keys."""
    for name, value in values.items():
        table, _, key = name.rpartition(".")
        run = replace(run, **{table: replace(getattr(run, table), **{key: value})} if table else {key: value})
    return run


def _plain(value: object) -> object:
    """A number of numpy or a path as what a file would hold."""
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise _NotPlainError(value)


class _NotPlainError(Exception):
    """A value that no file can hold."""


def _place_of(value: object, holder: object, above: str = "") -> str:
    """The dotted key at which a table, or what it holds, has this very object."""
    if holder is value:
        return above[:-1]
    if isinstance(holder, list | tuple):
        entries: list[tuple[str, object]] = [(above, entry) for entry in holder]
    elif isinstance(holder, dict):
        entries = [(f"{above}{key}.", entry) for key, entry in holder.items()]
    else:
        names = holder.__struct_fields__ if isinstance(holder, Struct) else ()
        entries = [(f"{above}{name}.", getattr(holder, name)) for name in names]
    return next((place for inner, entry in entries if (place := _place_of(value, entry, inner))), "")

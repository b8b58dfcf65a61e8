"""Every key of a run with type, default, bound and meaning: what help, docs, editors and error messages print."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct, inspect

from preftune.config.run import Run
from preftune.objective.presets import PRESETS

CHOICES = {"objective": "name", "reference": "kind", "aggregate": "name"}  # tables that are chosen by one of their keys
USUAL = {"objective": "dpo", "reference": "stored", "aggregate": "sum"}  # where only other keys of the table are given


class Key(Struct, frozen=True):
    """One key. choice: for a key of one objective or reference, its name; empty otherwise."""

    name: str
    type: str
    default: str
    bound: str
    meaning: str
    choice: str = ""


def schema() -> dict[str, Any]:
    """JSON schema of what a file may hold, for editors: of a run, and of the short forms that `load` writes out."""
    found = msgspec.json.schema(Run)
    tables, run = found["$defs"], found["$defs"]["Run"]["properties"]
    for key, choice in CHOICES.items():
        names = keys_below(key, {}, tags=True)
        usual = next(t for t in tables.values() if t["properties"].get(choice, {}).get("enum") == [USUAL[key]])
        short = [{**usual, "required": []}]  # its name may be left out
        if key == "objective":
            names += PRESETS
            short.append({"type": "object", "properties": {choice: {"enum": [*PRESETS]}}, "required": [choice],
                          "additionalProperties": False})  # fmt: skip
        facts = {name: run[key].pop(name) for name in ("description", "default") if name in run[key]}
        run[key] = {**facts, "anyOf": [{"enum": names}, *short, run[key]]}
    return found


def owners(place: str) -> list[str]:
    """Names of the choices that have a key, such as `objective.parts`."""
    return [f'"{key.choice}"' for key in keys() if key.name == place]


def keys() -> list[Key]:
    """All keys in the order of the file."""
    found = list(_keys(inspect.type_info(Run), ""))
    last = max(place for place, key in enumerate(found) if key.name.startswith("objective."))
    mixtures = [Key("objective.name", "choice", f'"{name}"', "", one.meaning, name) for name, one in PRESETS.items()]
    return [*found[: last + 1], *mixtures, *found[last + 1 :]]


def _keys(table: inspect.Type, above: str, choice: str = "") -> Iterator[Key]:
    assert isinstance(table, inspect.StructType)
    if table.tag_field is not None:
        meaning = (table.cls.__doc__ or "").strip().split("\n")[0]
        yield Key(f"{above}{table.tag_field}", "choice", f'"{table.tag}"', "", meaning, str(table.tag))
    for field in table.fields:
        inner, facts = _open(field.type)
        tables = _structs(inner)
        if not tables or field.name == "parts":
            default = "" if field.default is msgspec.NODEFAULT else _show(field.default)
            yield Key(above + field.encode_name, _name(inner), default, _bound(inner), facts, choice)
        for one in tables if field.name != "parts" else ():
            yield from _keys(one, f"{above}{field.encode_name}.", str(one.tag) if one.tag_field else choice)


def _open(kind: inspect.Type) -> tuple[inspect.Type, str]:
    """The type without its description, and the description."""
    meaning = ""
    while isinstance(kind, inspect.Metadata):
        meaning = (kind.extra_json_schema or {}).get("description", meaning)
        kind = kind.type
    return kind, meaning


def _structs(kind: inspect.Type) -> list[inspect.StructType]:
    kind, _ = _open(kind)
    if isinstance(kind, inspect.UnionType):
        return [found for part in kind.types for found in _structs(part)]
    return [kind] if isinstance(kind, inspect.StructType) else []


def _name(kind: inspect.Type) -> str:
    kind, _ = _open(kind)
    if isinstance(kind, inspect.UnionType):
        return " or ".join(_name(part) for part in kind.types if not isinstance(part, inspect.NoneType))
    if isinstance(kind, inspect.LiteralType):
        return " | ".join(f'"{value}"' for value in kind.values)
    if isinstance(kind, inspect.TupleType):
        return f"({', '.join(_name(part) for part in kind.item_types)})"
    if isinstance(kind, inspect.VarTupleType):
        if len(_structs(kind.item_type)) > 1:
            return "list of objectives"
        return f"list of {_name(kind.item_type)}"
    names = {"Str": "text", "Int": "whole number", "Float": "number", "Bool": "true | false", "Struct": "table"}
    return names.get(type(kind).__name__.removesuffix("Type"), type(kind).__name__)


def _bound(kind: inspect.Type) -> str:
    kind, _ = _open(kind)
    if isinstance(kind, inspect.UnionType):
        return " ".join(filter(None, map(_bound, kind.types)))
    if not isinstance(kind, inspect.IntType | inspect.FloatType):
        return ""
    signs = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
    return ", ".join(f"{sign} {getattr(kind, name):g}" for name, sign in signs if getattr(kind, name) is not None)


def _show(value: object) -> str:
    return "" if value is None else msgspec.json.encode(value).decode()


def keys_below(place: str, tree: dict[str, Any], tags: bool = False) -> list[str]:
    """Names that may stand at a place such as "objective" or "": keys of the table, or the names of its choices.

    tree: what the user wrote; it decides which of several tables is meant.
    """
    tables = [_struct(Run)]
    here: Any = tree
    for step in filter(None, place.split(".")):
        name, _, index = step.rstrip("]").partition("[")
        here = here.get(name, {}) if isinstance(here, dict) else {}
        if index and isinstance(here, list):
            here = here[int(index)]
        fields = {f.encode_name: f.type for table in tables for f in table.fields}
        if name not in fields:
            return []
        inner, _ = _open(fields[name])
        if index and isinstance(inner, inspect.VarTupleType):
            inner = inner.item_type
        tables = _structs(inner)
        if isinstance(inner, inspect.LiteralType):
            return [str(value) for value in inner.values]
    if tags:
        return [str(table.tag) for table in tables]
    chosen = [t for t in tables if t.tag_field and isinstance(here, dict) and here.get(t.tag_field) == t.tag]
    return [f.encode_name for table in chosen or tables[:1] for f in table.fields]


def _struct(kind: type[Struct]) -> inspect.StructType:
    found = inspect.type_info(kind)
    assert isinstance(found, inspect.StructType)
    return found

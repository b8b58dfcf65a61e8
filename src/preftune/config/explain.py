"""Every key of a run with its type, default, bound, meaning and facts, for help, docs, editors and error messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, inspect

from preftune.config.run import Run
from preftune.objective.presets import Preset
from preftune.table import FromPython, opened

NAMES = {
    "Str": "text",
    "Int": "whole number",
    "Float": "number",
    "Bool": "true | false",
    "Struct": "table",
    "Dict": "table",
}
SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class Key(Struct, frozen=True):
    """One key. choice: for a key of one objective or reference, its name. The last five are its facts (table.py)."""

    name: str
    type: str
    default: str
    bound: str
    meaning: str
    choice: str = ""
    identity: bool = True
    location: bool = False
    also: tuple[str, ...] = ()
    python: FromPython | None = None
    elsewhere: Mapping[str, str] = {}

    @property
    def decides(self) -> bool:
        """Whether its value is part of what identifies a run."""
        return self.identity and not self.location

    @property
    def table(self) -> str:
        """The table it is in: "" for a key of the run itself."""
        return self.name.rpartition(".")[0]

    @property
    def path(self) -> str:
        """How a run names it: `objective` for `objective.name`, which chooses the whole table."""
        return self.table if self.type == "choice" else self.name

    @property
    def bounded_type(self) -> str:
        """Its type with its bound."""
        return f"{self.type} {self.bound}".strip()


class Choice(NamedTuple):
    """A table that is one of several. tag: the key that says which; the first of the tables is the usual one."""

    tag: str
    tables: tuple[inspect.StructType, ...]
    presets: Mapping[str, Preset]

    @property
    def usual(self) -> str:
        return str(self.tables[0].tag)

    @property
    def names(self) -> list[str]:
        return [*(str(table.tag) for table in self.tables), *self.presets]


@cache
def choices() -> dict[str, Choice]:
    """The tables of a run that are one of several, by their key."""
    by_key = {}
    for field in _run().fields:
        kind, _, facts = opened(field.type)
        tables = _tables(kind)
        if tables and (tag := tables[0].tag_field):
            by_key[field.name] = Choice(tag, tables, facts.get("presets", {}))
    return by_key


def tables_first(words: Sequence[str]) -> list[str]:
    """Words such as `a.b=value`, in an order in which none undoes another: a table before its keys, and the key that
    says which table it is before the others. Words of one key stay in their order."""

    def depth(word: str) -> int:
        table, _, last = word.partition("=")[0].strip().rpartition(".")
        return word.partition("=")[0].count(".") - (table in choices() and last == choices()[table].tag)

    return sorted(words, key=depth)


@cache
def keys() -> tuple[Key, ...]:
    """All keys in the order of the file."""
    return tuple(_keys(_run(), "", {}))


def _keys(table: inspect.StructType, above: str, inherited: Mapping[str, Any], choice: str = "") -> Iterator[Key]:
    for field in table.fields:
        kind, meaning, facts = opened(field.type)
        facts = {**inherited, **{name: facts[name] for name in facts if name in Key.__struct_fields__}}
        name = above + field.encode_name
        tables = _tables(kind)
        if not tables:
            default = "" if field.default is None or field.default is msgspec.NODEFAULT else _json(field.default)
            yield Key(name, _type_name(kind), default, _bound(kind), meaning, choice, **facts)
        handed_down = {fact: value for fact, value in facts.items() if fact in ("identity", "location")}
        for inner in tables:
            if inner.tag_field:
                summary = (inner.cls.__doc__ or "").strip().partition("\n")[0]
                yield Key(f"{name}.{inner.tag_field}", "choice", _json(inner.tag), "", summary, str(inner.tag), **facts)
            yield from _keys(inner, f"{name}.", handed_down, str(inner.tag or ""))
        if name in choices():
            for preset, (_, summary, *_) in choices()[name].presets.items():
                yield Key(f"{name}.{choices()[name].tag}", "choice", _json(preset), "", summary, preset)


@cache
def from_python() -> dict[str, FromPython]:
    """The keys that may hold more in Python than in a file."""
    whole = {field.name: opened(field.type)[2].get("python") for field in _run().fields}
    by_path = [*whole.items(), *((key.path, key.python) for key in keys())]
    return {path: python for path, python in by_path if python is not None}


@cache
def elsewhere() -> dict[str, Mapping[str, str]]:
    """Values that a key, or a whole table, has in other libraries, with what to write here: by its place."""
    whole = {f.name: opened(f.type)[2].get("elsewhere") for f in _run().fields if f.name not in choices()}
    return {name: facts for name, facts in [*whole.items(), *((key.name, key.elsewhere) for key in keys())] if facts}


def markdown(shown: Sequence[Key]) -> str:
    """These keys as a table."""
    lines = ["| key | of | type | default | meaning |", "|---|---|---|---|---|"]
    for key in shown:
        cells = [f"`{key.name}`", key.choice, key.bounded_type, f"`{key.default}`" if key.default else "", key.meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def schema() -> dict[str, Any]:
    """JSON schema of what a file may hold, for editors: of a run, and of the short forms that `load` writes out."""
    whole = msgspec.json.schema(Run)
    tables, run = whole["$defs"], whole["$defs"]["Run"]["properties"]
    for key, choice in choices().items():
        usual = next(t for t in tables.values() if t["properties"].get(choice.tag, {}).get("enum") == [choice.usual])
        short = [{"enum": choice.names}, {**usual, "required": []}]  # the usual one's name may be left out
        if choice.presets:
            short.append({"type": "object", "properties": {choice.tag: {"enum": [*choice.presets]}},
                          "required": [choice.tag], "additionalProperties": False})  # fmt: skip
        about = {name: run[key].pop(name) for name in ("description", "default") if name in run[key]}
        run[key] = {**about, "anyOf": [*short, run[key]]}
    return whole


def names_at(place: str, tree: Mapping[str, Any]) -> list[str]:
    """The keys of the table at a place such as "objective" or "".

    tree: what the user wrote; it decides which of several tables is meant.
    """
    kind, value = _at(place, tree)
    tables = _tables(kind)
    chosen = [t for t in tables if t.tag_field and isinstance(value, dict) and value.get(t.tag_field) == t.tag]
    return [field.encode_name for table in chosen or tables[:1] for field in table.fields]


def values_at(place: str, tree: Mapping[str, Any]) -> list[str]:
    """The values of a key such as "model.layout" that may have but a few, among them the names of tables."""
    table, _, key = place.rpartition(".")
    if table in choices() and choices()[table].tag == key:
        return choices()[table].names
    tags = [str(inner.tag) for inner in _tables(_at(table, tree)[0]) if inner.tag_field == key]
    return tags or _literals(_at(place, tree)[0])


def value_at(place: str, tree: Mapping[str, Any]) -> Any:
    """What the user wrote at a place."""
    return _at(place, tree)[1]


def _at(place: str, tree: Mapping[str, Any]) -> tuple[inspect.Type, Any]:
    """The type of what stands at a place, and what the user wrote there; NoneType where a run has no such place."""
    kind, value = _run(), tree
    for step in filter(None, place.split(".")):
        name, _, index = step.rstrip("]").partition("[")
        types = {field.encode_name: field.type for table in _tables(kind) for field in table.fields}
        kind = opened(types.get(name, inspect.NoneType()))[0]
        value = value.get(name, {}) if isinstance(value, dict) else {}
        if index and isinstance(kind, inspect.VarTupleType):
            kind, value = opened(kind.item_type)[0], value[int(index)] if isinstance(value, list) else {}
    return kind, value


@cache
def _run() -> inspect.StructType:
    run = inspect.type_info(Run)
    assert isinstance(run, inspect.StructType)
    return run


def _tables(kind: inspect.Type) -> tuple[inspect.StructType, ...]:
    kind = opened(kind)[0]
    if isinstance(kind, inspect.UnionType):
        return tuple(table for part in kind.types for table in _tables(part))
    return (kind,) if isinstance(kind, inspect.StructType) else ()


def _literals(kind: inspect.Type) -> list[str]:
    kind = opened(kind)[0]
    if isinstance(kind, inspect.UnionType):
        return list(dict.fromkeys(value for part in kind.types for value in _literals(part)))
    if isinstance(kind, inspect.VarTupleType):
        return _literals(kind.item_type)
    return list(map(str, kind.values)) if isinstance(kind, inspect.LiteralType) else []


def _type_name(kind: inspect.Type) -> str:
    kind = opened(kind)[0]
    if isinstance(kind, inspect.UnionType):
        return " or ".join(_type_name(part) for part in kind.types if not isinstance(part, inspect.NoneType))
    if isinstance(kind, inspect.LiteralType):
        return " | ".join(map(_json, kind.values))
    if isinstance(kind, inspect.TupleType):
        return f"({', '.join(map(_type_name, kind.item_types))})"
    if isinstance(kind, inspect.VarTupleType):
        return "list of objectives" if len(_tables(kind.item_type)) > 1 else f"list of {_type_name(kind.item_type)}"
    name = type(kind).__name__.removesuffix("Type")
    return NAMES.get(name, name)


def _bound(kind: inspect.Type) -> str:
    kind = opened(kind)[0]
    if isinstance(kind, inspect.UnionType):
        return " ".join(filter(None, map(_bound, kind.types)))
    if not isinstance(kind, inspect.IntType | inspect.FloatType):
        return ""
    limits = {sign: getattr(kind, name) for name, sign in SIGNS.items()}
    return ", ".join(f"{sign} {limit:g}" for sign, limit in limits.items() if limit is not None)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()

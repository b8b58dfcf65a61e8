"""What all tables of a configuration share. Each stands in the folder that reads it; `config/run.py` joins them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from typing import Annotated, Any, NamedTuple, TypeVar, cast

from msgspec import NODEFAULT, Meta, Struct, StructMeta, inspect

from preftune.elsewhere import BY_NAME, spelled
from preftune.errors import UserError, nearest

T = TypeVar("T", bound=Struct)
Count = Annotated[int, Meta(ge=1)]


class Keyed(StructMeta):
    """Answers a key that a table made in Python does not have with the right one, as files are answered."""

    @property
    def __signature__(cls) -> Signature:
        """The keys with their defaults, without all that the code knows of each."""
        defaults = zip(cls.__struct_fields__[::-1], cls.__struct_defaults__[::-1], strict=False)
        by_name = {name: value for name, value in defaults if value is not NODEFAULT}
        return Signature([Parameter(name, Parameter.KEYWORD_ONLY, default=_shown(by_name.get(name, Parameter.empty)))
                          for name in cls.__struct_fields__])  # fmt: skip

    @property
    def __doc__(cls) -> str:  # type: ignore[override]
        """What the table is, and what each of its keys means."""
        summary = next((base.__dict__["__doc__"] for base in cls.__mro__ if base.__dict__.get("__doc__")), "")
        meanings = (f"{key.name}: {opened(key.type)[1]}" for key in _keys(cast("type[Struct]", cls)))
        return "\n".join([str(summary).rstrip(), "", *meanings])

    def __call__(cls: type[T], *values: Any, **keys: Any) -> T:  # pyright: ignore[reportGeneralTypeIssues]
        try:
            return super().__call__(*values, **keys)  # type: ignore[misc]
        except TypeError:
            if unknown := next((key for key in keys if key not in cls.__struct_fields__), None):
                raise UserError(f"{cls.__name__} has no {unknown}.", hint=_right_key(cls, unknown)) from None
            raise


def _shown(default: object) -> object:
    """A default as it is written: msgspec holds those that are made anew by how they are made."""
    return getattr(default, "factory", type(default))() if type(default).__module__.startswith("msgspec") else default


def opened(kind: inspect.Type) -> tuple[inspect.Type, str, dict[str, Any]]:
    """The type without what describes it, the description, and the facts."""
    meaning, facts = "", {}
    while isinstance(kind, inspect.Metadata):
        meaning = (kind.extra_json_schema or {}).get("description", meaning)
        facts |= kind.extra or {}
        kind = kind.type
    return kind, meaning, facts


def _keys(table: type[Struct]) -> tuple[inspect.Field, ...]:
    facts = inspect.type_info(table)
    assert isinstance(facts, inspect.StructType)
    return facts.fields


def _right_key(table: type[Struct], unknown: str) -> str:
    """The key that another library calls so, here or in another table, one that is spelled alike, or all there are."""
    name = spelled(unknown)
    by_table = {other: [key.name for key in _keys(other) if name in (key.name, *opened(key.type)[2].get("also", ()))]
                for other in (table, *sorted(Table.__subclasses__(), key=lambda other: other.__name__))}  # fmt: skip
    if by_table[table]:
        return f"Here it is {by_table[table][0]}."
    elsewhere = [f"{key} of {other.__name__}" for other, keys in by_table.items() for key in keys]
    if answer := BY_NAME.get(name) or (f"Here it is {' or '.join(elsewhere)}." if elsewhere else ""):
        return answer
    names = table.__struct_fields__
    return nearest(unknown, names) or (f"It has {', '.join(names)}." if names else "It has no keys.")


class Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, metaclass=Keyed):
    """A table of the configuration file."""


def flatten(value: Any, above: str = "") -> dict[str, Any]:
    """{"optim.lr": 1e-6, ...}: every leaf of a tree under its dotted key."""
    if isinstance(value, dict):
        return {key: leaf for name, item in value.items() for key, leaf in flatten(item, f"{above}{name}.").items()}
    return {above[:-1]: value}


def type_given(value: object) -> object:
    """What a record says in place of a value that only Python can hold: `(LlamaForCausalLM given in Python)`."""
    return f"({type(value).__name__} given in Python)"


class FromPython(NamedTuple):
    """A value that a key may hold in Python and no file can: what it is, how to recognize it, and what a file says.

    instead: what to write in place of a value that it does not accept, or an empty string.
    """

    meaning: str
    accepts: Callable[[Any], bool]
    recorded: Callable[[Any], object] = type_given
    instead: Callable[[Any], str] = lambda _: ""


def about(
    description: str, *, also: str = "", identity: bool = True, location: bool = False,
    python: FromPython | None = None, elsewhere: Mapping[str, str] | None = None,
    gt: float | None = None, ge: float | None = None, lt: float | None = None, le: float | None = None,
) -> Meta:  # fmt: skip
    """All that the code asks of a key: description, bounds and the facts that `config/explain.py` reads from it.

    also: earlier names of the key and its names in other libraries; an error answers them with the name here.
    identity: False if a resumed run may differ in it, because it does not change the result. location: it says where
    something is, and the identity of a run has a digest of what is there instead. python: what it may hold in Python.
    elsewhere: values that it has in other libraries, and what to write here.
    """
    facts = {"also": tuple(also.split()), "location": location, "python": python, "elsewhere": elsewhere}
    facts = {name: fact for name, fact in facts.items() if fact}  # else a table's own facts hold
    facts |= {} if identity else {"identity": False}
    return Meta(description=description, extra=facts, gt=gt, ge=ge, lt=lt, le=le)  # pyright: ignore[reportCallIssue]

"""What all tables of a configuration share. Each stands in the folder that reads it; `config/run.py` joins them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct

DEFAULTS = {"also": (), "identity": True, "location": False, "python": None, "elsewhere": {}}
Count = Annotated[int, Meta(ge=1)]


class Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the configuration file."""


def type_given(value: object) -> object:
    """What a record says in place of a value that only Python can hold: `(LlamaForCausalLM given in Python)`."""
    return f"({type(value).__name__} given in Python)"


class FromPython(NamedTuple):
    """A value that a key may hold in Python and no file can: what it is, how to recognize it, and what a file says."""

    meaning: str
    accepts: Callable[[Any], bool]
    recorded: Callable[[Any], object] = type_given


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
    facts = {"also": tuple(also.split()), "identity": identity, "location": location, "python": python,
             "elsewhere": elsewhere or {}}  # fmt: skip
    facts = {name: fact for name, fact in facts.items() if fact != DEFAULTS[name]}  # else a table's own facts hold
    return Meta(description=description, extra=facts, gt=gt, ge=ge, lt=lt, le=le)  # pyright: ignore[reportCallIssue]

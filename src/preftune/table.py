"""What all tables of a configuration share. Each table stands in the folder that reads it; `config/run.py` joins them.

What the code asks of a key stands on the key, in `Meta(extra={...})`, and on a table's key holds for all keys in it:

- `"identity": False`: a resumed run may differ in this key, because it does not change the result.
- `"location": True`: the key says where something is; the identity of a run has a digest of what is there instead.
- `"also": (...)`: earlier names of this key and names that other libraries give it; an error answers them with this one.
- `"python": FromPython(...)`: what the key may hold in Python, besides what it may hold in a file.
- `"presets": {...}`, `"elsewhere": {...}`: of a table that is one of several, further names for its `name` or `kind`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct

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

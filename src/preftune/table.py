"""What every table of a configuration has in common. Each stands in the folder that reads it; `config/run.py` puts them together."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=1)]


class Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the configuration file."""

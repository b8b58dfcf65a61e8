"""[batch] of a configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from preftune.table import Count, Table


class Batch(Table, frozen=True):
    """[batch] Examples of one update (the mathematics) and tokens of one forward pass (the memory)."""

    rows: Annotated[int, Meta(ge=1, description="Rows that make one update, on all ranks together.")] = 64
    tokens: Annotated[
        Count | None, Meta(description="Distinct tokens of one forward pass; found from the free memory if not given.")
    ] = None

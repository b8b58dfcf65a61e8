"""[reference] of a configuration: one table a kind."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from preftune.table import Count, Table


class Stored(Table, frozen=True, tag_field="kind", tag="stored"):
    """The reference is scored once per response into a store that all runs share."""

    path: Annotated[
        str | None, Meta(description="Folder or hub name of the reference; the policy's start if not given.")
    ] = None
    store: Annotated[
        str | None,
        Meta(description="Folder of the store; $PREFTUNE_STORE or ~/.cache/preftune/reference if not given."),
    ] = None


class Frozen(Table, frozen=True, tag_field="kind", tag="frozen"):
    """A second model in memory, asked in every step."""

    path: Annotated[
        str | None, Meta(description="Folder or hub name of the reference; the policy's start if not given.")
    ] = None


class Moving(Table, frozen=True, tag_field="kind", tag="moving"):
    """A second model in memory that follows the policy (TR-DPO, arXiv 2404.09656)."""

    share: Annotated[
        float, Meta(gt=0, le=1, description="Share of the policy's weights at each move; 1 copies the policy.")
    ] = 0.6
    every: Annotated[Count, Meta(description="Updates between two moves.")] = 64


class NoReference(Table, frozen=True, tag_field="kind", tag="none"):
    """No reference: for objectives that do not use one."""


Reference = Stored | Frozen | Moving | NoReference

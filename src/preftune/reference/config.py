"""[reference] of a configuration: one table a kind."""

from __future__ import annotations

from typing import Annotated

from preftune.table import Count, Table, about

ELSEWHERE = {
    "frozen": 'reference=stored: it gives the same numbers, and reference.store = "memory" keeps them in memory',
}
"""Kinds of earlier versions -> what to write here."""
STORE = """Folder of the store, or "memory" to keep the numbers in memory only; $PREFTUNE_STORE or
~/.cache/preftune/reference if not given.""".replace("\n", " ")


class Stored(Table, frozen=True, tag_field="kind", tag="stored"):
    """A fixed reference: it scores each response once, into a store that all runs share."""

    path: Annotated[
        str | None,
        about(
            "Folder or hub name of the reference; the policy's start if not given.",
            also="ref_model ref_model_adapters",
            location=True,
        ),
    ] = None
    store: Annotated[str | None, about(STORE, identity=False)] = None


class Moving(Table, frozen=True, tag_field="kind", tag="moving"):
    """A second model in memory that follows the policy (TR-DPO, arXiv 2404.09656)."""

    alpha: Annotated[
        float,
        about(
            "At a move: reference <- lerp(reference, policy, alpha); 1 copies the policy.",
            also="share ref_model_mixup_alpha",
            gt=0,
            le=1,
        ),
    ] = 0.6
    update_every: Annotated[Count, about("Updates between two moves.", also="every ref_model_sync_steps")] = 64


class NoReference(Table, frozen=True, tag_field="kind", tag="none"):
    """No reference: for objectives that do not use one."""


Reference = Stored | Moving | NoReference

"""[evaluate] of a configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from preftune.table import Count, Table


class Evaluate(Table, frozen=True):
    """[evaluate] When to measure on the held-out rows; always at the start and at the end."""

    every: Annotated[
        Count | None,
        Meta(
            description="Steps between evaluations; only at the start and the end if not given.",
            extra={"identity": False, "also": ("eval_steps", "eval_strategy", "evaluation_strategy")},
        ),
    ] = None

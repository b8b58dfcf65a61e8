"""[batch] of a configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from preftune.table import Count, Table

PEERS_ROWS = ("batch_size", "train_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")


class Batch(Table, frozen=True):
    """[batch] Rows of one update (the mathematics) and tokens of one forward pass (the memory)."""

    rows: Annotated[
        int, Meta(ge=1, description="Rows of one update, of all processes together.", extra={"also": PEERS_ROWS})
    ] = 64
    tokens: Annotated[
        Count | None,
        Meta(
            description="Distinct tokens of one forward pass; chosen to fit the free memory if not given.",
            extra={"also": ("micro_batch_size", "max_tokens_per_batch")},
        ),
    ] = None

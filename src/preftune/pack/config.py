"""[batch] of a configuration."""

from __future__ import annotations

from typing import Annotated

from preftune.table import Count, Table, about

PEERS = "batch_size train_batch_size per_device_train_batch_size gradient_accumulation_steps"


class Batch(Table, frozen=True):
    """[batch] Rows of one update (the mathematics) and tokens of one forward pass (the memory)."""

    rows: Annotated[int, about("Rows of one update, of all processes together.", also=PEERS, ge=1)] = 64
    tokens: Annotated[
        Count | None,
        about(
            "Distinct tokens of one forward pass; chosen to fit the free memory if not given.", also="micro_batch_size"
        ),
    ] = None

"""[batch] of a configuration."""

from __future__ import annotations

from typing import Annotated

from preftune.table import Count, Table, about

PEERS = (
    "batch_size train_batch_size per_device_train_batch_size gradient_accumulation_steps micro_batch_size "
    "ppo_mini_batch_size"
)
ROWS = "Rows of one update, of all processes together: a device's batch times accumulation steps times GPUs."
TOKENS = "Distinct tokens of one forward pass; chosen to fit the free memory if not given."
PEERS_OF_TOKENS = (
    "auto_find_batch_size per_device_eval_batch_size eval_batch_size precompute_ref_batch_size "
    "ppo_micro_batch_size_per_gpu micro_train_batch_size micro_rollout_batch_size"
)


class Batch(Table, frozen=True):
    """[batch] Rows of one update (the mathematics) and tokens of one forward pass (the memory)."""

    rows: Annotated[int, about(ROWS, also=PEERS, ge=1)] = 64
    tokens: Annotated[Count | None, about(TOKENS, also=PEERS_OF_TOKENS)] = None

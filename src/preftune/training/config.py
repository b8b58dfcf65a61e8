"""[optim] and [save] of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from preftune.table import Count, Table, about

Decay = Annotated[float, Meta(ge=0, lt=1)]
Schedule = Literal["constant", "linear", "cosine"]
WARMUP = "Share of the steps in which the rate rises from 0."


class Optim(Table, frozen=True):
    """[optim] AdamW, its schedule, and how long to train."""

    lr: Annotated[float, about("Highest learning rate.", also="learning_rate", gt=0, le=1)] = 1e-6
    schedule: Annotated[
        Schedule, about("Course of the learning rate after the warm-up.", also="lr_scheduler_type lr_scheduler")
    ] = "linear"
    warmup: Annotated[float, about(WARMUP, also="warmup_ratio warmup_steps", ge=0, lt=1)] = 0.1
    epochs: Annotated[
        Count | None,
        about("Passes over the rows; 1 if `steps` is not given either.", also="num_train_epochs"),
    ] = None
    steps: Annotated[Count | None, about("Updates, instead of `epochs`.", also="max_steps num_steps")] = None
    betas: Annotated[
        tuple[Decay, Decay], about("Decay of the first and of the second moment.", also="adam_beta1 adam_beta2")
    ] = (0.9, 0.999)
    eps: Annotated[float, about("Added to the root of the second moment.", also="adam_epsilon", gt=0)] = 1e-8
    weight_decay: Annotated[float, about("Decoupled weight decay, of matrices only.", ge=0)] = 0.0
    clip: Annotated[float, about("Largest norm of the gradient.", also="max_grad_norm grad_clip", gt=0)] = 1.0


class Save(Table, frozen=True):
    """[save] Checkpoints."""

    every: Annotated[
        Count | None,
        about("Steps between checkpoints; only the last if not given.", also="save_steps", identity=False),
    ] = None
    keep: Annotated[
        Count, about("How many of the newest checkpoints to keep.", also="save_total_limit", identity=False)
    ] = 2

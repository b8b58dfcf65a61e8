"""[optim] and [save] of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from preftune.table import Count, Table

Decay = Annotated[float, Meta(ge=0, lt=1)]


class Optim(Table, frozen=True):
    """[optim] AdamW, its schedule, and how long to train."""

    lr: Annotated[float, Meta(gt=0, le=1, description="Highest learning rate.", extra={"also": ("learning_rate",)})] = (
        1e-6
    )
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Meta(
            description="Course of the learning rate after the warm-up.",
            extra={"also": ("lr_scheduler_type", "lr_scheduler", "scheduler")},
        ),
    ] = "linear"
    warmup: Annotated[
        float,
        Meta(
            ge=0,
            lt=1,
            description="Share of the steps in which the rate rises from 0.",
            extra={"also": ("warmup_ratio", "warmup_steps")},
        ),
    ] = 0.1
    epochs: Annotated[
        Count | None,
        Meta(
            description="Passes over the rows; 1 if `steps` is not given either.",
            extra={"also": ("num_train_epochs", "num_epochs")},
        ),
    ] = None
    steps: Annotated[
        Count | None,
        Meta(description="Updates, instead of `epochs`.", extra={"also": ("max_steps", "num_steps")}),
    ] = None
    betas: Annotated[
        tuple[Decay, Decay],
        Meta(
            description="Decay of the first and of the second moment.",
            extra={"also": ("adam_beta1", "adam_beta2", "adam_betas")},
        ),
    ] = (0.9, 0.999)
    eps: Annotated[
        float, Meta(gt=0, description="Added to the root of the second moment.", extra={"also": ("adam_epsilon",)})
    ] = 1e-8
    weight_decay: Annotated[float, Meta(ge=0, description="Decoupled weight decay, of matrices only.")] = 0.0
    clip: Annotated[
        float,
        Meta(
            gt=0,
            description="Largest norm of the gradient.",
            extra={"also": ("max_grad_norm", "grad_clip", "gradient_clipping")},
        ),
    ] = 1.0


class Save(Table, frozen=True):
    """[save] Checkpoints."""

    every: Annotated[
        Count | None,
        Meta(
            description="Steps between checkpoints; only the last if not given.",
            extra={"identity": False, "also": ("save_steps", "save_strategy")},
        ),
    ] = None
    keep: Annotated[
        int,
        Meta(
            ge=1,
            description="How many of the newest checkpoints to keep.",
            extra={"identity": False, "also": ("save_total_limit",)},
        ),
    ] = 2

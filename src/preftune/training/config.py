"""[optim] and [save] of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from preftune.table import Count, Table, about

Share = Annotated[float, Meta(ge=0, lt=1)]
Schedule = Literal["constant", "linear", "cosine", "wsd"]
LR, LR_OF_ADAPTER = 1e-6, 1e-5  # an adapter of low rank takes about ten times the rate of all weights
WARMUP, DECAY = 0.1, 0.1  # shares of the steps, where nothing else is said
SCHEDULES = {  # as transformers has them
    "constant_with_warmup": 'schedule = "constant", with warmup or warmup_steps',
    "cosine_with_min_lr": 'schedule = "cosine", with floor',
    "cosine_warmup_with_min_lr": 'schedule = "cosine", with floor and warmup_steps',
    "polynomial": 'schedule = "linear", with floor',
    "warmup_stable_decay": 'schedule = "wsd", with decay',
}
ADAMW = "nothing: AdamW is the only optimizer"
OPTIMIZERS = dict.fromkeys(("adamw", "adam", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"), ADAMW)
OPTIMIZERS |= dict.fromkeys(
    ("adamw_8bit", "paged_adamw_8bit", "adamw_bnb_8bit", "adamw_torch_8bit"), "optim.state=int8"
)
OPTIMIZERS |= dict.fromkeys(("paged_adamw_32bit", "adafactor", "sgd", "lion_8bit", "paged_lion_8bit", "muon"), ADAMW)


class Optim(Table, frozen=True):
    """[optim] AdamW, its schedule, and how long to train."""

    lr: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        about("Highest learning rate; 1e-6 if not given, or 1e-5 of an adapter.", also="learning_rate"),
    ] = None
    schedule: Annotated[
        Schedule,
        about(
            "Course of the rate after the warm-up; wsd: constant, and linear to the floor at the end.",
            also="lr_scheduler_type lr_scheduler", elsewhere=SCHEDULES,
        ),
    ] = "linear"  # fmt: skip
    warmup: Annotated[
        Share | None,
        about("Share of the steps in which the rate rises from 0; 0.1 if `warmup_steps` is not given.",
              also="warmup_ratio"),
    ] = None  # fmt: skip
    warmup_steps: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        about("Updates in which the rate rises from 0, instead of `warmup`.", also="num_warmup_steps"),
    ] = None
    floor: Annotated[
        Share | None,
        about("Share of the rate that is left at the end; 0 if not given. Not for constant.",
              also="min_lr_rate min_lr_ratio min_lr lr_min_ratio cosine_min_lr_ratio lr_end"),
    ] = None  # fmt: skip
    decay: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        about("Share of the steps at the end in which the rate of wsd falls; 0.1 if not given.",
              also="num_decay_steps decay_ratio wsd_decay_ratio"),
    ] = None  # fmt: skip
    epochs: Annotated[
        Count | None,
        about("Passes over the rows; 1 if `steps` is not given either.", also="num_train_epochs num_epochs"),
    ] = None
    steps: Annotated[Count | None, about("Updates, instead of `epochs`.", also="max_steps num_steps")] = None
    betas: Annotated[
        tuple[Share, Share],
        about("Decay of the first and of the second moment.", also="adam_beta1 adam_beta2 adam_betas"),
    ] = (0.9, 0.999)
    eps: Annotated[float, about("Added to the root of the second moment.", also="adam_epsilon", gt=0)] = 1e-8
    weight_decay: Annotated[float, about("Decoupled weight decay, of matrices only.", ge=0)] = 0.0
    clip: Annotated[
        float, about("Largest norm of the gradient.", also="max_grad_norm grad_clip gradient_clipping", gt=0)
    ] = 1.0
    state: Annotated[
        Literal["float32", "int8"],
        about("Type in which the moments are kept; int8 takes 2 bytes a weight in place of 8.",
              also="optim_bits optimizer_bits"),
    ] = "float32"  # fmt: skip
    rounding: Annotated[
        Literal["nearest", "stochastic"] | None,
        about("Of weights after an update; stochastic, where they are in bfloat16, loses no update on average.",
              also="bf16_stochastic_round stochastic_rounding"),
    ] = None  # fmt: skip

    @property
    def rate(self) -> float:
        """The highest rate, where `resolve` has not filled it in yet."""
        return self.lr or LR


class Save(Table, frozen=True):
    """[save] Checkpoints."""

    every: Annotated[
        Count | None,
        about(
            "Steps between checkpoints; only the last if not given.",
            also="save_steps save_strategy saves_per_epoch",
            identity=False,
        ),
    ] = None
    keep: Annotated[
        Count, about("How many of the newest checkpoints to keep.", also="save_total_limit", identity=False)
    ] = 2
    best: Annotated[
        bool,
        about("Export the weights of the best evaluation, not those of the last step.", also="load_best_model_at_end"),
    ] = False

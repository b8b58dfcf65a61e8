"""What the keys of [optim] need of each other and of [model]."""

from __future__ import annotations

from msgspec.structs import replace

from preftune.config.drawing import without_effect
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.objective import of_scores
from preftune.reference.config import Moving
from preftune.training.config import DECAY, LR, LR_OF_ADAPTER, WARMUP, Optim

TYPICAL = 0.02  # size of a weight of a language model
SPACING = 2.0**-13  # distance of bfloat16 numbers of that size: they have 8 digits, and begin anew at 2^-6


def trained_type(run: Run) -> str:
    """The type of the weights that are trained; an adapter's own are in float32."""
    whole_parts = run.adapter is None or bool(run.adapter.train_also) or of_scores(run.objective)
    return "bfloat16" if run.model.weights == "bfloat16" and whole_parts else "float32"


def with_optim(run: Run) -> Run:
    """The run with the open keys of [optim] filled in. Raises UserError where one has no effect, or two exclude
    each other."""
    optim = run.optim
    _refuse_schedule(optim)
    _refuse_moving(run)
    changes: dict[str, object] = {"rounding": _rounding(run)}
    if optim.lr is None:
        changes["lr"] = LR if run.adapter is None else LR_OF_ADAPTER
    if optim.warmup_steps is None and optim.warmup is None:
        changes["warmup"] = WARMUP
    if optim.schedule == "wsd" and optim.decay is None:
        changes["decay"] = DECAY
    return replace(run, optim=replace(optim, **changes))


def _refuse_schedule(optim: Optim) -> None:
    for first, second in (("steps", "epochs"), ("warmup", "warmup_steps")):
        if getattr(optim, first) is not None and getattr(optim, second) is not None:
            raise UserError(f"{first} and {second} are both given.", location="optim", hint="Remove one of the two.")
    if optim.floor is not None and optim.schedule == "constant":
        raise without_effect("a constant rate has no floor", "optim.floor")
    if optim.decay is not None and optim.schedule != "wsd":
        raise without_effect(f"{optim.schedule} falls from the warm-up on", "optim.decay")
    decay = DECAY if optim.decay is None else optim.decay
    if optim.schedule == "wsd" and (optim.warmup or 0.0) + decay > 1:
        raise UserError("the warm-up and the decay are longer than the run.", location="optim.decay", hint="Lower it.")


def _refuse_moving(run: Run) -> None:
    if isinstance(run.reference, Moving) and run.reference.alpha < 1 and run.model.weights == "bfloat16":
        message = "a part of the policy's movement is lost to rounding where the reference has bfloat16 weights."
        hint = 'Set model.weights = "float32", or reference.alpha = 1, which copies the policy.'
        raise UserError(message, location="reference.alpha", hint=hint)


def _rounding(run: Run) -> str:
    narrow, rounding = trained_type(run) == "bfloat16", run.optim.rounding
    if rounding == "stochastic" and not narrow:
        raise without_effect("weights in float32 hold their updates", "optim.rounding")
    if rounding == "nearest" and narrow:
        raise UserError(
            f"updates of {run.optim.rate:g} would be rounded away: {SPACING / 2:.1e} is half the distance of a "
            f"bfloat16 weight of {TYPICAL} to its neighbor.",
            location="optim.rounding",
            hint='Leave it out, which makes it "stochastic", or set model.weights = "float32".',
        )
    return "stochastic" if narrow else "nearest"

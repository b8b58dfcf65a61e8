"""The course of the learning rate, which is known before the first update. Held by tests/training/test_schedule.py."""

from __future__ import annotations

import math

from preftune.errors import UserError
from preftune.training.config import DECAY, WARMUP, Optim


def warmup_steps(optim: Optim, steps: int) -> int:
    """Updates of `steps` in which the rate rises."""
    if optim.warmup_steps is not None:
        return optim.warmup_steps
    return math.ceil((WARMUP if optim.warmup is None else optim.warmup) * steps)


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """Rate of update `step` (0-based) of `steps`: a rise over the warm-up, then the schedule's course to the floor.

    constant stays; linear and cosine fall from then on; wsd stays and falls linearly over the last share `decay`
    (warmup-stable-decay, arXiv 2404.06395).
    """
    warmup = warmup_steps(optim, steps)
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    falls = decay_steps(optim, steps) if optim.schedule == "wsd" else steps - warmup
    progress = max(0, step - (steps - falls)) / max(1, falls)
    course = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * progress)) / 2}.get(optim.schedule, 1 - progress)
    floor = optim.floor or 0.0
    return optim.lr * (floor + (1 - floor) * course)


def decay_steps(optim: Optim, steps: int) -> int:
    """Last updates of `steps` in which the rate of wsd falls."""
    return math.ceil((DECAY if optim.decay is None else optim.decay) * steps)


def refuse_long_warmup(optim: Optim, steps: int) -> None:
    """Raise UserError where a warm-up in steps leaves no update for the highest rate."""
    falls = decay_steps(optim, steps) if optim.schedule == "wsd" else 0
    if optim.warmup_steps is not None and optim.warmup_steps + max(1, falls) > steps:
        text = f"of the run's {steps} updates {optim.warmup_steps} would be warm-up"
        text += f" and {falls} decay" if falls else ""
        raise UserError(f"{text}, and none has its highest rate.", location="optim.warmup_steps",
                        hint="Lower it, or train longer.")  # fmt: skip

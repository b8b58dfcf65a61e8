"""What of a run decides its memory, and the table of what fits. Held by tests/run/test_fits.py and tests/cli."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from transformers.configuration_utils import PreTrainedConfig

from preftune.config.drawing import reward_tables
from preftune.config.run import Run
from preftune.model.budget import LARGEST, SMALLEST, positions
from preftune.model.fits import Demand, Fit, Way, first_that_fits, fit, ways
from preftune.model.load import load_config
from preftune.model.memory import Setup
from preftune.model.shapes import meta_module, shapes_of
from preftune.model.trained import train_only
from preftune.objective.rollouts import PPO
from preftune.reference.config import Moving, Stored
from preftune.rollout.config import Value

SHOWN = 4  # numbers of GPUs in a table


@dataclass(frozen=True, slots=True)
class Gpus:
    """GPUs of one size. memory: bytes of each."""

    count: int
    memory: float


class WhatFits(NamedTuple):
    """parameters: of the policy; fits: of each way on each number of GPUs, the run's own first; remedy: for all GPUs,
    where the run as it is does not fit on them."""

    parameters: int
    gpus: Gpus
    longest: int
    fits: tuple[Fit, ...]
    remedy: Fit | None


def setup_of(run: Run, parameters: int, device: str, *, trained: int | None = None) -> Setup:
    """What decides a run's memory, but for reward models. parameters: of the policy, and so of its copies; trained: how
    many are, where that is known; 0 where the run only scores."""
    model, copied, value, trains = run.model, 0, 0, trained != 0
    if trains and (
        isinstance(run.reference, Moving) or (run.rollout is not None and isinstance(run.reference, Stored))
    ):
        copied = parameters
    if trains and isinstance(run.objective, PPO):
        path = (run.value or Value()).path or next((r.model for r in reward_tables(run) if r.model), None)
        value = parameters if path is None else _parameters(path, "value.path")
    usual = "bfloat16" if device == "cuda" else "float32"
    return Setup(
        weights="float32" if model.weights == "auto" else model.weights,
        compute=usual if model.compute == "auto" else model.compute,
        trained=trained,
        state=run.optim.state,
        checkpointing=model.checkpointing,
        copied=copied,
        value=value,
        device="cuda" if device == "cuda" else "cpu",
    )


def what_fits(run: Run, config: PreTrainedConfig, gpus: Gpus, longest: int = 0) -> WhatFits:
    """What fits on GPUs of one size, from the model's config alone. longest: tokens of the longest row, where rows are
    known. Raises UserError."""
    module = meta_module(config)
    if run.model.trainable is not None:
        train_only(module, run.model.trainable)
    shapes, trained = shapes_of(module), sum(p.numel() for p in module.parameters() if p.requires_grad)
    scorers = [reward.model for reward in reward_tables(run) if reward.model and not reward.judge]
    own = replace(setup_of(run, shapes.parameters, "cuda", trained=trained),
                  frozen=sum(_parameters(path, "reward.model") for path in scorers))  # fmt: skip
    pack = run.batch.tokens or LARGEST["cuda"]
    least = run.batch.tokens or min(SMALLEST, pack)
    demand = Demand(gpus.memory, max(longest, least), pack, positions(config))
    way = Way(own, ())
    table = [fit(shapes, each, count, demand, recompute=each is not way)
             for count in counts(gpus.count) for each in ways(way)]  # fmt: skip
    own_fit = next(each for each in reversed(table) if each.way is way)
    remedy = None if own_fit.tokens else first_that_fits(shapes, way, gpus.count, demand)
    return WhatFits(shapes.parameters, gpus, demand.longest, tuple(table), remedy)


def counts(gpus: int) -> list[int]:
    """The numbers of GPUs that a table shows: the powers of two below, and all of them; at most four."""
    return [*(2**k for k in range(gpus.bit_length()) if 2**k < gpus), gpus][-SHOWN:]


def _parameters(path: str, location: str) -> int:
    return shapes_of(meta_module(load_config(path, None, location))).parameters

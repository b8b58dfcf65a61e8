"""What of a run decides its memory, and the table of what fits. Held by tests/model/test_fits.py and tests/cli."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import NamedTuple

from msgspec.structs import replace as replace_keys
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from preftune.config.run import Run, reward_tables
from preftune.model.budget import LARGEST, SMALLEST, positions
from preftune.model.config import Ranks
from preftune.model.fits import Demand, Fit, Way, fit, least_remedy, ways
from preftune.model.load import load_config
from preftune.model.memory import Setup
from preftune.model.scalar import with_score
from preftune.model.shapes import Shapes, meta_module, shapes_of
from preftune.model.weights import train_only
from preftune.objective import of_scores
from preftune.objective.rollouts import PPO
from preftune.reference.config import Moving, Stored
from preftune.rollout.config import Value
from preftune.run.models import refuse_untrainable, stands_on_base, stored_adapter, types_of
from preftune.run.shards import refuse_undividable, shards_of

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


class Learned(NamedTuple):
    """How many numbers a run trains, and how many an adapter has beside them that stay."""

    trained: int
    fixed: int = 0


def needs_of(run: Run, config: PreTrainedConfig, device: str, *, trains: bool = True) -> tuple[Shapes, Setup]:
    """What decides the memory of a run, from its model's config alone. Raises UserError where the model does not have
    what the run trains."""
    module = meta_module(deepcopy(config))  # a score is written into it
    if of_scores(run.objective):
        module = with_score(module, "model.path")
    shapes = shapes_of(module)
    return shapes, setup_of(run, shapes.parameters, device, learned_by(run, module) if trains else Learned(0))


def learned_by(run: Run, module: PreTrainedModel) -> Learned:
    """What a run trains of a model that stands on torch's meta device, to which an adapter is put as training puts it.
    Raises UserError where the model has no such parts."""
    if run.adapter is None:
        if run.model.trainable is not None:
            train_only(module, run.model.trainable)
        return Learned(sum(p.numel() for p in module.parameters() if p.requires_grad))
    if (stored := stored_adapter(run)) is not None:
        numbers = stored.numbers
        return Learned(numbers, numbers)  # once more, as what training begins from
    from preftune.model.put_adapter import begin_adapter  # peft is imported where it is needed

    table = replace_keys(run.adapter, start="zero")  # how it begins asks for numbers
    sizes = {name: p.numel() for name, p in
             begin_adapter(module, table, base="", revision=None, digest="", seed=0).trained().items()}  # fmt: skip
    thin = sum(size for name, size in sizes.items() if "lora_" in name)
    return Learned(sum(sizes.values()), thin if run.adapter.start in ("pissa", "olora") else 0)


def setup_of(run: Run, parameters: int, device: str, learned: Learned) -> Setup:
    """What decides a run's memory, but for reward models. parameters: of the policy, and so of its copies; learned: of
    these, none where the run only scores."""
    trains, copied, value = learned.trained != 0, 0, 0
    adapter = run.adapter if trains else None
    if trains and (
        isinstance(run.reference, Moving) or (run.rollout is not None and isinstance(run.reference, Stored))
    ):
        copied = parameters
    if trains and isinstance(run.objective, PPO):
        path = (run.value or Value()).path or next((r.model for r in reward_tables(run) if r.model), None)
        value = parameters if path is None else _parameters(path, "value.path")
        on_base = adapter is not None and (path is None or stands_on_base(run, path, "value.path"))
        value = 0 if on_base else value  # a second adapter, as small as the first
    usual = "bfloat16" if device == "cuda" else "float32"
    weights, compute = types_of(run.model, usual, adapter=adapter is not None)
    return Setup(
        weights=weights,
        compute=compute,
        rank=0 if adapter is None else adapter.rank,
        trained=learned.trained,
        state=run.optim.state,
        checkpointing=run.model.checkpointing,
        copied=copied,
        frozen=learned.fixed,
        value=value,
        device="cuda" if device == "cuda" else "cpu",
    )


def what_fits(run: Run, config: PreTrainedConfig, gpus: Gpus, longest: int = 0) -> WhatFits:
    """What fits on GPUs of one size, from the model's config alone. longest: tokens of the longest row, where rows are
    known. Raises UserError, also where training would refuse the run."""
    refuse_untrainable(run)
    shapes, own = needs_of(run, config, "cuda")
    scorers = [reward.model for reward in reward_tables(run) if reward.model and not reward.judge]
    apart = [path for path in scorers if not stands_on_base(run, path, "reward.model")]
    own = replace(own, frozen=own.frozen + sum(_parameters(path, "reward.model") for path in apart))
    refuse_undividable(run)
    pack = run.batch.tokens or LARGEST["cuda"]
    least = run.batch.tokens or min(SMALLEST, pack)
    demand = Demand(gpus.memory, max(longest, least), pack, positions(config))
    way = Way(own, ())
    asked, others = shards_of(run), shards_of(replace_keys(run, ranks=Ranks()))
    table = [fit(shapes, each, count, demand, recompute=each is not way, shards=asked if each is way else others)
             for count in counts(gpus.count) for each in ways(way)]  # fmt: skip
    own_fit = next(each for each in reversed(table) if each.way is way)
    remedy = None if own_fit.tokens else least_remedy(shapes, way, gpus.count, demand, others)
    return WhatFits(shapes.parameters, gpus, demand.longest, tuple(table), remedy)


def counts(gpus: int) -> list[int]:
    """The numbers of GPUs that a table shows: the powers of two below, and all of them; at most four."""
    return [*(2**k for k in range(gpus.bit_length()) if 2**k < gpus), gpus][-SHOWN:]


def _parameters(path: str, location: str) -> int:
    return shapes_of(meta_module(load_config(path, None, location))).parameters

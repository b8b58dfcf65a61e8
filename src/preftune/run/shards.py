"""What the ranks of a run divide among them, and what cannot be divided. Held by tests/laws/test_shards.py."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from preftune.config.run import Run, scoring_tables
from preftune.distributed import Distributed
from preftune.errors import UserError
from preftune.model.budget import SMALLEST, available_memory
from preftune.model.fits import SHARDS
from preftune.model.memory import Setup, Shard, expected
from preftune.model.policy import Policy
from preftune.model.quantized import QUANTIZED
from preftune.model.shapes import Shapes
from preftune.model.shard import ShardedByStep
from preftune.objective import PPO
from preftune.reference.config import Moving
from preftune.run.match_rows import Notes
from preftune.run.models import stands_on_base

USABLE = 0.9  # of a rank's memory: fragments, and what others take


def refuse_shards(run: Run, dist: Distributed) -> None:
    """Raise UserError where the run asks for shards that cannot be, or that nothing would be divided by."""
    shard = run.ranks.shard
    if dist.world_size == 1 and shard not in ("auto", "none"):
        raise UserError(f'"{shard}" has no effect: this is one process.', location="ranks.shard",
                        hint="Start several with torchrun, or leave the key out.")  # fmt: skip
    refuse_undividable(run)


def refuse_undividable(run: Run) -> None:
    """Raise UserError where `ranks.shard` asks for what cannot be divided, on however many ranks."""
    shard = run.ranks.shard
    if shard in ("step", "layer") and run.model.weights in QUANTIZED:
        raise UserError(f"a base in {run.model.weights} is not divided: each rank has it whole.",
                        location="ranks.shard", hint="Leave the key out.")  # fmt: skip
    if shard == "layer" and (reason := whole_needed(run)):
        raise UserError(f"weights cannot be divided: {reason}.", location="ranks.shard", hint='Use shard = "step".')


def whole_needed(run: Run) -> str:
    """Why every rank of this run needs whole weights; empty where none does."""
    if run.rollout is not None and (run.rollout.server is None or run.adapter is None):
        return "responses are drawn by whole models, unless a server draws them for an adapter (rollout.server)"
    if isinstance(run.objective, PPO):
        return "the value model is a second whole model"
    if any(stands_on_base(run, reward.model, "reward.model") for reward in scoring_tables(run) if reward.model):
        return "the reward model stands on the policy's base, and each rank asks it by itself"
    if isinstance(run.reference, Moving):
        return "the reference that follows is a second whole model"
    if not isinstance(run.model.path, str):
        return "a model that is given loaded is given back whole"
    return ""


def refuse_separate_disks(out: Path, dist: Distributed) -> None:
    """Raise UserError where a rank does not see the folder in which all of them will write their rows: now, and not at
    the first checkpoint. Rank 0 holds the folder's lock by now."""
    if not (out / ".lock").exists():
        raise UserError(f"rank {dist.rank} does not see this folder, in which every rank writes.", location=str(out),
                        hint='Name one on a disk that all machines share, or use shard = "none".')  # fmt: skip


def choose_shard(
    run: Run, shapes: Shapes, setup: Setup, device: torch.device, notes: Notes, dist: Distributed
) -> Shard:
    """What is divided, before anything is loaded: where that is open, the first of none, step and layer that every rank
    has memory for.

    setup: of the run, with nothing divided.
    """
    if dist.world_size == 1:
        return "none"
    needs = bytes_of_a_rank(shapes, setup, dist.world_size)
    memory = -dist.max(-memory_of_a_rank(run, device, dist))
    refuse_undividable(run)  # for `score`, which nobody has asked yet
    shard = run.ranks.shard
    if shard == "auto":
        shard = first_that_fits(needs, memory, [each for each in setup.divisible if each in shards_of(run)])
    sizes = ", ".join(f"{name} {needs[name] / 2**30:.3g}" for name in needs)
    text = f"shard {shard}: a rank has {memory / 2**30:.3g} GiB, and training takes {sizes}"
    notes["shard"] = (text, {"shard": shard, "memory": memory, "needs": dict(needs)})
    if shard == "layer" and run.evaluate.samples:
        notes["no_samples"] = ("no texts are drawn for the page: no rank has the whole model that draws", {})
    return shard


def shards_of(run: Run) -> tuple[Shard, ...]:
    """What `ranks.shard` lets ranks divide."""
    if run.ranks.shard != "auto":
        return (run.ranks.shard,)
    return ("none", "step") if whole_needed(run) else ("none", "step", "layer")


def first_that_fits(needs: Mapping[Shard, int], memory: int, shards: Sequence[Shard]) -> Shard:
    """The first of these; where none does, what takes least."""
    fitting: list[Shard] = [shard for shard in shards if needs[shard] <= USABLE * memory]
    return fitting[0] if fitting else min(shards, key=lambda shard: needs[shard])


def bytes_of_a_rank(shapes: Shapes, setup: Setup, world_size: int, tokens: int = SMALLEST) -> dict[Shard, int]:
    """What training takes on one of so many ranks, with packs of so many tokens, by what is divided."""
    setups = {shard: replace(setup, shard=shard, gpus=world_size) for shard in SHARDS}
    return {shard: expected(shapes, setups[shard], tokens).total for shard in SHARDS}


def memory_of_a_rank(run: Run, device: torch.device, dist: Distributed) -> int:
    """Bytes that a rank has for the run, also those that a model given loaded takes already."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = available_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", dist.world_size))
    path = run.model.path
    return free + (0 if isinstance(path, str) else sum(p.nbytes for p in path.parameters()))


def divided(policy: Policy, shard: Shard) -> Policy:
    """The policy with the moments and updates of what it trains divided among ranks, where that is asked; one that is
    cut by layers was so when it was loaded."""
    return replace(policy, weights=ShardedByStep.of(policy.weights)) if shard == "step" else policy

"""One state on all ranks: what those that have read no checkpoint get, and whether they still have the same bits.

Held by tests/laws/test_ranks_end.py and tests/training/test_tensor_files.py.
"""

from __future__ import annotations

from pathlib import Path

import torch

from preftune.distributed import Distributed
from preftune.errors import CORRUPT, UserError
from preftune.training.checkpoint import State, load, load_weights, path_of


def broadcast(state: State, dist: Distributed) -> None:
    """Give every rank the state of rank 0, which alone reads checkpoints; but each its own rows, where they are cut."""
    if dist.world_size == 1:
        return
    state.step, state.skipped = map(dist.broadcast_int, (state.step, state.skipped))
    state.oom.splits = dist.broadcast_int(state.oom.splits)
    ema = torch.full((dist.broadcast_int(len(state.ema)),), torch.nan, dtype=torch.float64)
    for index, mean in enumerate(state.ema):
        ema[index] = torch.nan if mean is None else mean
    dist.broadcast([ema])
    state.ema = tuple(None if mean != mean else mean for mean in ema.tolist())
    if state.step == 0:  # before the first update all have loaded the same weights
        return
    if state.weights.sharded:
        _read_rows(state, path_of(state.root, state.step), dist)
        return
    for learner in state.learners.values():
        learner.broadcast(dist)
    dist.broadcast(p.detach() for p in (state.reference.parameters() if state.reference is not None else ()))


def _read_rows(state: State, path: Path, dist: Distributed) -> None:
    """The rows of the ranks that have not read their own yet. Raises UserError where one cannot."""
    problem = "" if dist.first else load(state, path, state.step, len(state.ema))
    if problem:
        raise UserError(f"this checkpoint cannot be read by rank {dist.rank}: {problem}.", location=str(path),
                        hint="All ranks of a run with shards need its folder on a disk that they see.",
                        code=CORRUPT)  # fmt: skip
    for learner in state.learners.values():
        learner.weights.share(dist)


def read_weights(state: State, step: int, dist: Distributed) -> None:
    """Put the weights alone of the checkpoint of a step into the state of every rank. Raises UserError where a rank
    cannot read it."""
    path = path_of(state.root, step)
    for begin, learner in state.learners.items():
        weights, problem = learner.weights, ""
        with dist.agreed():
            if dist.first or weights.sharded:
                problem = load_weights(weights, path, f"{begin}weights")
            if problem:
                raise UserError(f"cannot be read: {problem}.", location=str(path), code=CORRUPT)
        if weights.sharded:
            weights.share(dist)
        else:
            dist.broadcast(weights.state().values())


def has_drifted(state: State, dist: Distributed) -> bool:
    """Whether the trained weights of some rank are other bits than those of another, as they must never be."""
    if dist.world_size == 1:
        return False
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    replicas = [tensor for learner in state.learners.values() for tensor in learner.weights.replicas().values()]
    bits = [tensor.contiguous().view(words[tensor.element_size()]) for tensor in replicas]
    return bool(bits) and not all(dist.all_equal(torch.stack([b.sum(dtype=torch.int64) for b in bits]).tolist()))

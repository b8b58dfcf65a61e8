"""A checkpoint of any number of ranks is the same state for any other number, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from making import tiny
from safetensors.torch import load_file, save_file
from several import on_ranks
from torch.distributed.tensor import DTensor

from preftune import folders
from preftune.distributed import SINGLE_PROCESS, Distributed
from preftune.model.shard import ShardedByStep
from preftune.model.shard_layer import ShardedByLayer
from preftune.model.weights import Weights, WholeModel
from preftune.training import checkpoint, state_of_ranks
from preftune.training.checkpoint import State
from preftune.training.config import Optim
from preftune.training.optimizer import adamw
from preftune.training.tensor_files import files_of

KINDS: dict[str, Callable[[Weights], Weights]] = {
    "none": lambda weights: weights, "step": ShardedByStep.of, "layer": ShardedByLayer.of,
}  # fmt: skip
NOT_ASKED = "lm_head.weight"


def state_of(kind: str, seed: int) -> State:
    """A state after one update with made gradients; one parameter has had none."""
    module = tiny(seed=seed, vocab_size=63)  # rows that no number of ranks divides
    generator = torch.Generator().manual_seed(seed)
    gradients = {name: torch.randn(p.shape, generator=generator) for name, p in module.named_parameters()}
    weights = KINDS[kind](WholeModel(module))
    state = State(weights, adamw(weights, Optim(), 0))
    for name, parameter in weights.trained().items():
        gradient = gradients[name]
        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            gradient = DTensor.from_local(
                [*gradient.chunk(mesh.size()), gradient[:0]][min(mesh.get_local_rank(), len(gradient))].contiguous(),
                mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride(),
            )  # fmt: skip
        parameter.grad = None if name == NOT_ASKED else gradient
    state.optimizer.step()
    state.step, state.ema = 1, (0.5, None)
    return state


def bits(state: State) -> dict[str, torch.Tensor]:
    """All tensors of a state, whole. Every rank must ask."""
    tensors = {**state.weights.state(), **state.learners[""].moments()}
    return {n: (t.full_tensor() if isinstance(t, DTensor) else t).clone() for n, t in tensors.items()}


def saved(kind: str, ranks: int, tmp_path: Path) -> Path:
    """The folder of a checkpoint that so many ranks have written."""
    if ranks == 1:
        checkpoint.save(state_of("none", 0), tmp_path / "saved", 2)
    else:
        on_ranks(
            ranks, tmp_path / "a", lambda dist: str(checkpoint.save(state_of(kind, 0), tmp_path / "saved", 2, dist))
        )
    return tmp_path / "saved" / "step-00000001"


@pytest.mark.parametrize(
    ("saving", "ranks", "reading", "readers"),
    [("step", 2, "none", 1), ("step", 2, "layer", 3), ("none", 1, "step", 2), ("layer", 3, "step", 2)],
)
def test_the_same_bits_whoever_reads_them(saving: str, ranks: int, reading: str, readers: int, tmp_path: Path) -> None:
    path = saved(saving, ranks, tmp_path)
    assert not folders.verify(path)
    expected = bits(state_of("none", 0))

    def read(dist: Distributed) -> None:
        state = state_of(reading, 1)
        found, problems = (
            checkpoint.load_newest(state, tmp_path / "saved", steps=1, means=2) if dist.first else (path, [])
        )
        assert (found, problems) == (path, [])
        state.root = tmp_path / "saved"
        state_of_ranks.broadcast(state, dist)
        assert (state.step, state.ema) == (1, (0.5, None))
        save_file(bits(state), tmp_path / f"read {dist.rank}")

    if readers == 1:
        read(SINGLE_PROCESS)
    else:
        assert on_ranks(readers, tmp_path / "b", read) == [None] * readers
    for rank in range(readers):
        tensors = load_file(tmp_path / f"read {rank}")
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def test_another_models_rows_are_passed_over(tmp_path: Path) -> None:
    """Each rank's own rows would fit: 63 and 64 are both cut into 32 and less."""
    saved("step", 2, tmp_path)
    other = WholeModel(tiny(vocab_size=64))
    state = State(other, adamw(other, Optim(), 0))
    path, problems = checkpoint.load_newest(state, tmp_path / "saved", steps=1, means=2)
    assert path is None
    assert "has another shape" in problems[0]


def test_files_of_another_number_of_ranks_are_not_mixed() -> None:
    two = [f"weights-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert files_of("weights", ["weights.safetensors", "state.json"]) == ["weights.safetensors"]
    assert files_of("weights", [*reversed(two), "optimizer-00001-of-00001.safetensors"]) == two
    assert files_of("weights", two[:1]) == files_of("weights", two[1:]) == []
    assert files_of("weights", [*two, "weights-00001-of-00003.safetensors"]) == []


def test_a_rank_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    saved("step", 2, tmp_path)

    def read(dist: Distributed) -> None:
        state = state_of("step", 1)
        if dist.first:
            checkpoint.load_newest(state, tmp_path / "saved", steps=1, means=2)
        state.root = tmp_path / ("saved" if dist.first else "elsewhere")
        state_of_ranks.broadcast(state, dist)

    said = on_ranks(2, tmp_path / "b", read)
    assert any("cannot be read by rank 1" in each["text"] for each in said)
    assert json.dumps(said).count("a disk that they see") == 1

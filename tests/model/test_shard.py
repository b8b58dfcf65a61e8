"""Weights divided among ranks: a step and its updates are those of one process, and no rank has all numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from making import groups, tiny
from safetensors.torch import load_file, save_file
from several import on_ranks
from steps import one_step
from torch.distributed.tensor import DTensor

from preftune import objective as o
from preftune.distributed import SINGLE_PROCESS, Distributed
from preftune.model.policy import trainable, wrap
from preftune.model.shard import ShardedByStep, rows_of
from preftune.model.shard_layer import ShardedByLayer
from preftune.model.weights import WholeModel, local
from preftune.objective import Objective
from preftune.pack.plan import Packing, Step
from preftune.training.config import Optim
from preftune.training.learner import Learner
from preftune.training.optimizer import adamw
from preftune.training.update import clipped_norm, take_step

KINDS = {"step": ShardedByStep.of, "layer": ShardedByLayer.of}
ROWS = (9, 1)  # of an update; with one row, some rank has no pack
CASES: dict[str, tuple[str, dict[str, object], Objective]] = {
    "tied": ("llama", {"tie_word_embeddings": True}, o.DPO()),
    "untied": ("llama", {"tie_word_embeddings": False}, o.SimPO()),
    "coupled": ("llama", {"tie_word_embeddings": True}, o.AOT()),
    "mismatched": ("llama", {}, o.KTO()),
    "experts": ("qwen3_moe", {}, o.DPO()),  # whose products have no fp64
    "caps": ("gemma2", {}, o.DPO()),  # tied, with caps and scaled embeddings; its norms have no fp64
}


def updated(
    case: str, kind: str, dtype: torch.dtype, dist: Distributed, packs_for: int, path: Path, *, recompute: bool = False
) -> int:
    """Write all gradients, norms and losses of an update of each number of rows, and the weights after both; returns
    how many numbers of what is trained this rank has."""
    family, keys, objective = CASES[case]
    policy = trainable(wrap(tiny(family, dtype=dtype, **keys), "auto")[0], checkpointing=recompute)
    if kind != "none":
        policy = replace(policy, weights=KINDS[kind](policy.weights))
    reference, packing = wrap(tiny(family, dtype=dtype, seed=1, **keys), "auto")[0], Packing(60, attention_crossover=50)
    learner, results = Learner(policy.weights, adamw(policy.weights, Optim(lr=1e-3), 0)), {}
    for count in ROWS:
        rows = groups(count, response=(1, 9), prompt=(3, 12))
        step = packing.step(rows, packs_for)
        step = step if dist.world_size > 1 else Step(step.packs)
        output = one_step(policy, reference, objective, rows, step, packing, dist).output
        results |= {f"{count} gradient of {name}": whole(p.grad) for name, p in policy.weights.trained().items()}
        results[f"{count} loss"] = torch.tensor(output.value)
        results[f"{count} norm"] = torch.tensor(clipped_norm(learner, 1.0, dist))
        take_step(learner, 1e-3, dist)
        learner.optimizer.zero_grad()
    with policy.weights.whole():
        results |= {f"weight {name}": p.detach().clone() for name, p in policy.module.named_parameters()}
        if dist.first:
            save_file(results, path)
    return sum(local(p).numel() for p in policy.weights.trained().values())


def whole(gradient: torch.Tensor | None) -> torch.Tensor:
    assert gradient is not None
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()


def differences(one: Path, other: Path, kind: str) -> dict[str, float]:
    """How far tensors of this kind are off, next to the largest number of any."""
    expected, tensors = load_file(one), load_file(other)
    assert expected.keys() == tensors.keys()
    chosen = [name for name in expected if kind in name]
    scale = max(float(expected[name].abs().max()) for name in chosen)
    return {name: float((tensors[name] - expected[name]).abs().max()) / scale for name in chosen}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["tied", "untied", "coupled", "mismatched"])
def test_two_updates_are_those_of_one_process(tmp_path: Path, case: str, kind: str) -> None:
    """In fp64, where AdamW does not take rounding for a gradient."""
    double = torch.float64
    numbers = updated(case, "none", double, SINGLE_PROCESS, 2, tmp_path / "one")
    sizes = on_ranks(2, tmp_path / "on", lambda dist: updated(case, kind, double, dist, 2, tmp_path / "two"))
    for part in ("gradient", "loss", "norm", "weight"):
        off = differences(tmp_path / "one", tmp_path / "two", part)
        assert max(off.values()) < 1e-9, (part, max(off, key=off.__getitem__))
    assert sum(sizes) == numbers
    assert max(sizes) <= 0.51 * numbers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["tied", "experts", "caps"])
def test_gradients_are_those_of_one_process_in_single_precision(tmp_path: Path, case: str, kind: str) -> None:
    """Three ranks, which have unlike numbers of rows of most tensors, and activations that are computed again."""
    single, recompute = torch.float32, case == "tied"
    numbers = updated(case, "none", single, SINGLE_PROCESS, 3, tmp_path / "one", recompute=recompute)
    sizes = on_ranks(
        3, tmp_path / "on", lambda dist: updated(case, kind, single, dist, 3, tmp_path / "two", recompute=recompute)
    )
    for part in ("9 gradient", "9 loss", "9 norm"):
        off = differences(tmp_path / "one", tmp_path / "two", part)
        assert max(off.values()) < 1e-6, (part, max(off, key=off.__getitem__))
    assert sum(sizes) == numbers


def test_rows_are_cut_as_torch_cuts_them() -> None:
    for size in range(9):
        for ranks in range(1, 5):
            chunks = [chunk.tolist() for chunk in torch.arange(size).chunk(ranks)] if size else []
            parts = [list(range(size))[rows_of(size, rank, ranks)] for rank in range(ranks)]
            assert [part for part in parts if part] == chunks


@pytest.mark.parametrize("kind", KINDS)
def test_digest_and_state_are_those_of_the_whole_model(tmp_path: Path, kind: str) -> None:
    """And a state that is put in reaches what the model computes with, on every rank. What is cut by layers knows the
    digest of what it was."""
    expected, other = WholeModel(tiny()).digest(), WholeModel(tiny(seed=1)).digest()

    def work(dist: Distributed) -> list[str]:
        policies = [wrap(tiny(seed=seed), "auto")[0] for seed in (0, 1)]
        first, second = (KINDS[kind](policy.weights) for policy in policies)
        batch = policies[0].batch(groups(2, seed=dist.rank))
        before = first.digest(), second.digest()
        for name, tensor in second.state().items():
            local(first.state()[name]).copy_(local(tensor))
        first.share(dist)
        answers = [replace(policies[n], weights=(first, second)[n]).token_logp(batch) for n in (0, 1)]
        assert torch.equal(*answers)
        assert kind == "layer" or first.digest() == other
        return list(before)

    assert on_ranks(2, tmp_path / "on", work) == [[expected, other]] * 2


def test_a_single_number_cannot_be_divided(tmp_path: Path) -> None:
    def work(dist: Distributed) -> None:
        module = tiny()
        module.register_parameter("temperature", torch.nn.Parameter(torch.tensor(1.0)))
        ShardedByStep.of(WholeModel(module))

    told = on_ranks(2, tmp_path / "on", work)
    assert any("temperature is a single number" in each["text"] for each in told)

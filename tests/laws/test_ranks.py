"""A run is the same run on any number of ranks: its gradients, losses, evaluations and store."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import torch.distributed as dist
from making import group, groups, save_model, tiny
from recorded import lines, weights
from safetensors.torch import load_file, save_file
from several import on_ranks
from steps import one_step

from preftune import distributed as ranks_module
from preftune import objective as o
from preftune.config.run import Run
from preftune.distributed import SINGLE_PROCESS, Distributed, current, process_group
from preftune.files import read_lines
from preftune.model.policy import wrap
from preftune.pack import plan
from preftune.pack.plan import Packing, Step
from preftune.reference.fill import score_missing
from preftune.reference.store import Store
from preftune.run.score import score as score_rows
from preftune.run.train import train
from preftune.tokens.aggregate import LD, apply_aggregate

MIXED = o.Sum(parts=(o.DPO(), o.NLL(), o.KTO()), weights=(1.0, 0.2, 0.5))
OBJECTIVES = (o.DPO(), o.SimPO(), o.KTO(), o.AOT(), o.BCO(), o.BetaDPO(), o.DrDPO(), o.DRO(), o.WPO(), MIXED)


def rows(count: int) -> list:
    """Pairs of uneven length, some of them with one prompt."""
    rng = np.random.default_rng(4)
    prompts = [[3, 4, *rng.integers(3, 60, n)] for n in (1, 2, 3, 30)]
    return [
        group(prompts[n % 4], *(rng.integers(3, 60, rng.integers(1, 12)) for _ in range(2)), scores=(0.3 * n, -0.1))
        for n in range(count)
    ]


def gradients(dtype: torch.dtype, dist: Distributed, count: int, packs_for: int) -> dict[str, torch.Tensor]:
    """Gradient, loss and derivatives of one step of so many rows in packs for so many ranks, by objective."""
    models = (tiny(dtype=dtype, seed=seed, num_hidden_layers=2) for seed in (0, 1))
    policy, reference = (wrap(model, "auto")[0] for model in models)
    plain, packing, results = rows(count), Packing(60, attention_crossover=50), {}
    for number, objective in enumerate(OBJECTIVES):
        made = apply_aggregate(plain, LD(alpha=0.3)) if number % 2 else plain
        step = packing.step(made, packs_for)
        step = step if dist.world_size > 1 else Step(step.packs)
        output = one_step(policy, reference, objective, made, step, packing, dist).output
        gradient = [p.grad.flatten() for p in policy.module.parameters() if p.grad is not None]
        results[f"{number} gradient"] = torch.cat(gradient)
        results[f"{number} value"] = torch.tensor([output.value])
        results[f"{number} d_logp"] = output.d_logp
    return results


@pytest.mark.parametrize(("count", "size"), [(2, 9), (2, 1), (3, 9), (3, 2)])
def test_a_step_is_the_same_on_any_number_of_ranks(tmp_path: Path, count: int, size: int) -> None:
    """With nine rows each rank has packs; with one or two some rank has none. In fp64 the packs too are others."""

    def work(ranks: Distributed) -> None:
        for dtype in (torch.float64, torch.float32):
            save_file(gradients(dtype, ranks, size, count), tmp_path / f"{dtype}-{ranks.rank}")

    on_ranks(count, tmp_path / "on", work)
    for dtype, packs_for, allowed in ((torch.float64, 1, 1e-12), (torch.float32, count, 5e-7)):
        alone = gradients(dtype, SINGLE_PROCESS, size, packs_for)
        told = [load_file(tmp_path / f"{dtype}-{index}") for index in range(count)]
        for name, value in alone.items():
            scale = max(1.0, float(value.abs().max()))
            assert float((told[0][name] - value).abs().max()) <= allowed * scale, (dtype, name)
            assert all(torch.equal(one[name], told[0][name]) for one in told), (dtype, name)


def test_gradients_are_summed_in_pieces_and_one_that_nobody_has_stays_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks_module, "BUCKET", 4)

    def work(ranks: Distributed) -> list:
        shapes = [(3, 3), (2,), (5,), (1,)]
        made = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float32)) for shape in shapes]
        made[1] = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
        made[0].grad = (torch.arange(9.0).view(3, 3) * (1 + ranks.rank)).t()
        if ranks.rank == 1:
            made[1].grad = torch.full((2,), 1.5, dtype=torch.bfloat16)
        made[2].grad = torch.ones(5)
        made.append(torch.nn.Parameter(torch.zeros(1), requires_grad=False))
        ranks.sum_gradients(made)
        return [None if p.grad is None else p.grad.float().tolist() for p in made]

    expected = [(torch.arange(9.0).view(3, 3) * 3).t().tolist(), [1.5, 1.5], [2.0] * 5, None, None]
    assert on_ranks(2, tmp_path / "on", work) == [expected] * 2


def entries(root: Path) -> dict[bytes, np.ndarray]:
    """All of a reference store."""
    weights, _, numerics = next(root.iterdir()).name.partition("-")
    return Store(root, weights, numerics)._entries


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_run_is_the_same_on_two_ranks(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """Packs are the same here, because fp32 products round by their shapes; that packs do not matter is another law.

    The last step of an epoch has one row, and so one pack, and no mismatched responses.
    """
    fill = plan.fill
    monkeypatch.setattr(plan, "fill", lambda *given: fill(*given[:-1], 2))
    one, two = (
        run_of(
            objective__name=objective,
            optim__lr=1e-5,
            batch__rows=7,
            batch__tokens=60,
            evaluate__every=5,
            out=str(tmp_path / name),
            reference__store=str(tmp_path / f"store {name}"),
        )
        for name in ("one", "two")
    )
    out = train(one)
    assert on_ranks(2, tmp_path / "on", lambda _: str(train(two))) == [two.out] * 2
    for name in ("metrics", "evaluations", "evaluation_rows"):
        for a, b in zip(lines(out, name), lines(Path(two.out), name), strict=True):
            nats = max(abs(a["chosen_logp"]), abs(a["rejected_logp"]))  # margins and changes are differences of these
            for key, value in a.items():
                scale = 1.0 if key in ("loss", "grad_norm") or "incentive" in key else nats
                if isinstance(value, float):
                    assert b[key] == pytest.approx(value, rel=5e-7, abs=5e-7 * scale), (name, a, key)
                elif not key.startswith("tokens_"):
                    assert b[key] == value
    for name, value in weights(out).items():
        assert float((weights(Path(two.out))[name] - value).abs().max()) <= 5e-7
    first, second = entries(tmp_path / "store one"), entries(tmp_path / "store two")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_packs_for_other_ranks_hold_the_rows_of_the_same_steps(run_of: Callable[..., Run], tmp_path: Path) -> None:
    out, two = train(run_of(out=str(tmp_path / "one"))), run_of(out=str(tmp_path / "two"))
    on_ranks(2, tmp_path / "on", lambda _: str(train(two)))
    for a, b in zip(lines(out), lines(Path(two.out)), strict=True):
        assert (a["examples"], a["chosen_tokens"]) == (b["examples"], b["chosen_tokens"])
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-4)  # lr 1e-3 on a steep model: rounding grows from step 2
    assert lines(out)[0]["loss"] == pytest.approx(lines(Path(two.out))[0]["loss"], rel=5e-7)


def test_rows_are_scored_on_several_ranks(run_of: Callable[..., Run], tmp_path: Path) -> None:
    run = run_of(optim=msgspec.UNSET, batch__tokens=60, reference__path=str(save_model(tmp_path / "other", seed=3)))
    alone = score_rows(run, tmp_path / "one.jsonl")
    told = on_ranks(3, tmp_path / "on", lambda _: score_rows(run, tmp_path / "three.jsonl"))
    assert told[1] == told[0]
    assert told[2] == told[0]
    known = {name: value for name, value in alone.items() if value is not None}
    assert {name: value for name, value in told[0].items() if value is not None} == pytest.approx(known, rel=1e-5)
    assert len(read_lines(tmp_path / "three.jsonl")) == 50


def test_ranks_without_a_disk_in_common_hold_every_entry(tmp_path: Path) -> None:
    """Each response is computed once in all; a rank whose store is lost gets the entries of those that have them."""
    made = groups(9, seed=1)
    policy = wrap(tiny(), "auto")[0]

    def work(ranks: Distributed) -> tuple[int, int, float, int]:
        store = Store(tmp_path / f"disk {ranks.rank}", "w" * 64, "n")
        there = len(store)
        done = score_missing(policy, store, made, tokens=60, dist=ranks)
        total = math.fsum(float(store[key].sum()) for key in sorted(store._entries))
        return there, done.scored, total, len(store)

    first = on_ranks(2, tmp_path / "a", work)
    assert [(one[0], one[1], one[3]) for one in first] == [(0, 18, 18)] * 2
    again = on_ranks(2, tmp_path / "b", work)
    assert again[0][0] + again[1][0] == 18
    assert all(one[1] == 0 for one in again)
    next((tmp_path / "disk 0").rglob("*.safetensors")).unlink()
    lost = on_ranks(2, tmp_path / "c", work)
    assert lost[0][0] == 0
    assert 0 < lost[0][1] < 18
    assert len({one[2] for one in (*first, *again, *lost)}) == 1


def test_a_group_of_the_caller_is_worked_in_and_stays(tmp_path: Path) -> None:
    """It may be one of NCCL alone, which exchanges nothing on the host: a group of gloo is made beside it."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with process_group() as joined:
            assert (joined.rank, joined.world_size) == (0, 1)
            assert joined.control is not None
            assert current() is joined
        assert current() is SINGLE_PROCESS
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_ranks_of_a_machine_take_turns(tmp_path: Path) -> None:
    def work(dist: Distributed) -> None:
        with dist.in_turn():
            for name in ("begins", "ends"):
                with (tmp_path / "log").open("a") as log:
                    log.write(f"{dist.rank} {name}\n")

    on_ranks(3, tmp_path / "on", work)
    assert (tmp_path / "log").read_text().splitlines() == [
        f"{n} {does}" for n in range(3) for does in ("begins", "ends")
    ]

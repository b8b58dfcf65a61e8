"""Weights in bfloat16, moments in 8 bits and partly trained models keep the laws of a run: resumes, ranks, shards."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from making import tiny
from recorded import events, lines, same, weights
from safetensors.torch import load_file
from several import on_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from preftune.config.run import Run
from preftune.distributed import Distributed
from preftune.errors import USAGE, UserError
from preftune.files import read_lines
from preftune.model.weights import WholeModel
from preftune.run.train import train
from preftune.training.config import Optim
from preftune.training.optimizer import RoundedAdamW, adamw

LOW = {"model__weights": "bfloat16", "optim__state": "int8"}
PARTLY = {"model__trainable": ["model.layers.2.*", "model.norm.*"]}


def killed_after(run: Run, updates: int) -> None:
    """The run in a child that is killed once it has recorded so many updates."""
    child = os.fork()
    if child == 0:
        try:
            train(run)
        finally:
            os._exit(1)
    deadline, metrics = time.monotonic() + 90, Path(run.out) / "metrics.jsonl"
    while len(read_lines(metrics)) < updates:
        assert os.waitpid(child, os.WNOHANG)[0] == 0, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize("keys", [LOW, {**LOW, **PARTLY}, {"optim__state": "int8"}], ids=["low", "partly", "int8"])
def test_a_killed_run_resumes_to_the_same_bits(keys: dict, run_of: Callable[..., Run], tmp_path: Path) -> None:
    keys = {**keys, "optim__epochs": 4, "save__every": 2, "save__keep": 9}
    whole, cut = train(run_of(out=str(tmp_path / "whole"), **keys)), run_of(out=str(tmp_path / "cut"), **keys)
    killed_after(cut, 5)
    train(cut, resume=True)
    assert 0 < events(tmp_path / "cut", "resumed")[0]["step"] < 28
    assert same(whole, tmp_path / "cut")
    for part in ("weights", "optimizer"):
        ours, theirs = (
            load_file(out / f"checkpoints/step-00000028/{part}.safetensors") for out in (whole, tmp_path / "cut")
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_frozen_stays_and_is_in_the_export_and_in_no_checkpoint(
    run_of: Callable[..., Run], world: Path
) -> None:
    out = train(run_of(**PARTLY))
    start, end = load_file(world / "model" / "model.safetensors"), weights(out)
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert start.keys() == end.keys()
    assert changed == {name for name in start if name.startswith(("model.layers.2.", "model.norm."))}
    newest = max((out / "checkpoints").iterdir())
    assert load_file(newest / "weights.safetensors").keys() == changed
    moments = load_file(newest / "optimizer.safetensors")
    assert {name.rpartition("/")[0] for name in moments} == changed
    assert json.loads((out / "identity.json").read_text())["model.trainable"] == PARTLY["model__trainable"]
    assert events(out, "trainable")[0]["parameters"] == len(changed)


def test_other_weights_than_a_run_began_with_are_no_damage(run_of: Callable[..., Run]) -> None:
    train(run_of(**PARTLY, save__every=4))
    other = run_of(model__trainable=["model.layers.1.*"], optim__epochs=4)
    with pytest.raises(UserError, match=r"no checkpoint is of a run with these changes.*Set it back") as caught:
        train(other, resume=True, allow_change=["model.trainable", "optim.epochs"])
    assert caught.value.code == USAGE


def test_a_run_in_bfloat16_learns_as_one_in_fp32_does(run_of: Callable[..., Run], tmp_path: Path) -> None:
    """At rates below half the distance of the weights to their neighbors in bfloat16, 5e-4 at the median."""
    keys = {"optim__epochs": 15, "optim__lr": 5e-4}
    exact = train(run_of(out=str(tmp_path / "exact"), **keys))
    low = train(run_of(out=str(tmp_path / "low"), **keys, **LOW))
    ends = [lines(out, "evaluations")[-1]["loss"] for out in (exact, low)]
    assert ends[0] < 0.62
    assert ends[1] == pytest.approx(ends[0], rel=0.04)
    assert events(low, "rounding")
    assert not events(exact, "rounding")


@pytest.mark.parametrize("keys", [LOW, {"optim__state": "int8"}, {**LOW, **PARTLY}], ids=["low", "int8", "partly"])
def test_two_ranks_are_one_and_go_on_where_one_stopped(keys: dict, run_of: Callable[..., Run], tmp_path: Path) -> None:
    """Ranks round alike, which every save checks; the two sum gradients in another order than one."""
    keys = {**keys, "batch__tokens": 60, "save__every": 4, "save__keep": 9}
    alone, two = train(run_of(out=str(tmp_path / "one"), **keys)), run_of(out=str(tmp_path / "two"), **keys)
    assert on_ranks(2, tmp_path / "on", lambda _: str(train(two))) == [two.out] * 2
    cut = run_of(out=str(tmp_path / "cut"), **keys)
    killed_after(cut, 6)
    assert on_ranks(2, tmp_path / "again", lambda _: str(train(cut, resume=True))) == [cut.out] * 2
    assert events(tmp_path / "cut", "resumed")[0]["step"] == 4
    close = 1e-2 if "model__weights" in keys else 1e-4
    for out in (two.out, cut.out):
        for a, b in zip(lines(alone), lines(Path(out)), strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=close)


def stepped(dist: Distributed | None) -> dict[str, torch.Tensor]:
    """Weights and moments, whole, after three updates with made gradients, of a model cut along the first axis of its
    parameters among the ranks."""
    weights = WholeModel(tiny(dtype=torch.bfloat16, hidden_size=40, intermediate_size=300))
    for name, shape in (("short", (2,)), ("flat", (1, 5)), ("experts", (4, 3, 7))):  # of the first two a rank has none
        weights.module.register_parameter(name, torch.nn.Parameter(torch.ones(shape, dtype=torch.bfloat16)))
    if dist is not None:
        mesh = init_device_mesh("cpu", (dist.world_size,))
        for module in weights.module.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                cut = torch.nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)]))
                module.register_parameter(name, cut)
    optimizer = adamw(weights, Optim(state="int8", weight_decay=0.1), seed=3)
    assert isinstance(optimizer, RoundedAdamW)
    for update in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        for p in weights.trained().values():
            drawn = torch.randn(p.shape, generator=torch.Generator().manual_seed(update)).to(p.dtype)
            p.grad = distribute_tensor(drawn, p.device_mesh, p.placements) if isinstance(p, DTensor) else drawn
        optimizer.step()
    whole = {}
    for name, p in weights.trained().items():
        for key, tensor in {"": p.detach(), **optimizer.state[p]}.items():
            assert isinstance(tensor, DTensor) == (dist is not None and key != "step")
            whole[f"{name}/{key}"] = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole


def test_shards_round_as_the_whole_does(tmp_path: Path) -> None:
    """To the last bit: blocks are parts of rows, and bits belong to a number's place in the whole parameter."""
    expected = stepped(None)

    def differing(dist: Distributed) -> list[str]:
        result = stepped(dist)
        assert result.keys() == expected.keys()
        return [name for name in result if not torch.equal(result[name], expected[name])]

    assert on_ranks(3, tmp_path / "on", differing) == [[]] * 3

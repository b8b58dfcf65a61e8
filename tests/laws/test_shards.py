"""A run whose ranks divide weights, gradients or moments is the run of one process, however it ends and goes on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from making import save_model, tiny
from recorded import events, lines, same, weights
from several import after_steps, ends, on_ranks

from preftune import files
from preftune.config.run import Run
from preftune.distributed import SINGLE_PROCESS, Distributed
from preftune.errors import IO, NON_FINITE, STOPPED, UserError
from preftune.folders import Folder
from preftune.forward import forward
from preftune.model import verify
from preftune.model.config import Model
from preftune.model.policy import Policy
from preftune.model.weights import local
from preftune.reference import fill
from preftune.rollout.config import Rollout
from preftune.run import shards
from preftune.run import train as train_module
from preftune.run.train import fit, train
from preftune.training import update

SHARDS = ("step", "layer")


@pytest.fixture(scope="module")
def replicas(keys_of: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By objective the record of a run on two ranks of which each has everything."""
    records: dict[str, Path] = {}

    def record(objective: str) -> Path:
        if objective not in records:
            folder = tmp_path_factory.mktemp("replicas")
            run = keys_of(folder, **KEYS, objective__name=objective, ranks__shard="none")
            on_ranks(2, folder / "ranks", lambda _: str(train(run)))
            records[objective] = Path(run.out)
        return records[objective]

    return record


KEYS: dict[str, Any] = {"optim__lr": 1e-5, "batch__rows": 7, "batch__tokens": 60, "save__every": 4}


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_run_is_that_of_ranks_which_have_everything(
    run_of: Callable[..., Run], replicas: Callable[[str], Path], tmp_path: Path, objective: str, shard: str
) -> None:
    """Losses, norms, evaluations and weights to a few roundings. The last step of an epoch has one row, and one rank
    has no pack."""
    run, before = run_of(**KEYS, objective__name=objective, ranks__shard=shard), replicas(objective)
    assert on_ranks(2, tmp_path / "on", lambda _: str(train(run))) == [run.out] * 2
    for name in ("metrics", "evaluations"):
        for a, b in zip(lines(before, name), lines(Path(run.out), name), strict=True):
            assert a.keys() == b.keys() or shard == "layer"
            for key in {"loss", "grad_norm", "accuracy", "chosen_logp"} & {key for key in a if a[key] is not None}:
                assert a[key] == pytest.approx(b[key], rel=2e-6, abs=2e-6), (name, key)
    for name, value in weights(before).items():
        assert float((weights(Path(run.out))[name] - value).abs().max()) <= 1e-6
    moved = [record["share"] for out in (before, Path(run.out)) for record in events(out, "weights_moved")]
    assert moved[0] == pytest.approx(moved[1], abs=0.02)
    assert events(Path(run.out), "shard")[0]["shard"] == shard


@pytest.mark.parametrize("shard", SHARDS)
def test_killed_on_one_rank_a_run_goes_on_to_the_same_bits(
    run_of: Callable[..., Run], tmp_path: Path, shard: str
) -> None:
    keys = {"ranks__shard": shard, "save__every": 1, "optim__epochs": 3, "optim__lr": 1e-5}
    whole, cut = run_of(**keys, out=str(tmp_path / "whole")), run_of(**keys, out=str(tmp_path / "cut"))
    on_ranks(2, tmp_path / "a", lambda _: str(train(whole)))
    kill = after_steps(Path(cut.out), 4, lambda processes: processes[1].kill())
    told = on_ranks(2, tmp_path / "b", lambda _: str(train(cut)), kill)
    assert told[0]["code"] == STOPPED
    assert len(lines(Path(cut.out))) < 21
    on_ranks(2, tmp_path / "c", lambda _: str(train(cut, resume=True)))
    assert same(Path(whole.out), Path(cut.out))


PASSES = {"tried": (verify, "plain_logp", 1), "scored": (fill, "read_packs", 2), "learned": (forward, "score_pack", 3)}


@pytest.mark.parametrize("where", PASSES)
def test_a_rank_that_is_gone_is_no_fault_of_the_model(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The other one waits for it within a layer, where torch exchanges tensors by itself."""
    owner, name, call = PASSES[where]
    right, calls = getattr(owner, name), 0

    def counted(*what: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return right(*what)

    def work(dist: Distributed) -> str:
        if dist.rank == 1:
            monkeypatch.setattr(owner, name, counted)
        return str(train(run_of(**KEYS, ranks__shard="layer", reference__store="memory")))

    told = on_ranks(2, tmp_path / "on", work)
    assert told[1] is None
    assert (told[0]["error"], told[0]["code"]) == ("UserError", STOPPED)
    assert "another rank has exited" in told[0]["text"]


@pytest.mark.parametrize(("before", "after"), [("step", "layer"), ("layer", "none"), ("none", "step")])
def test_any_number_of_ranks_takes_over(run_of: Callable[..., Run], tmp_path: Path, before: str, after: str) -> None:
    """Two ranks save; one, two and three read the same bits and end at the same weights, but for rounding."""
    keys = {"optim__lr": 1e-5, "save__every": 4, "optim__epochs": 1, "data__evaluate": None}
    first = run_of(**keys, out=str(tmp_path / "first"), ranks__shard=before)
    on_ranks(2, tmp_path / "a", lambda _: str(train(first)))
    newest = sorted((tmp_path / "first" / "checkpoints").iterdir())
    read: dict[int, dict[str, torch.Tensor]] = {}
    for count, shard in ((1, "auto"), (2, after), (3, after)):
        out = tmp_path / str(count)
        shutil.copytree(first.out, out)
        files.delete(out / "checkpoints" / newest[-1].name)
        run = run_of(**keys, out=str(out), ranks__shard=shard)
        if count == 1:
            train(run, resume=True)
        else:
            on_ranks(count, tmp_path / f"on {count}", lambda _, run=run: str(train(run, resume=True)))
        assert [line["step"] for line in events(out, "resumed")] == [4]
        read[count] = weights(out)
    for name, value in weights(Path(first.out)).items():
        for count, tensors in read.items():
            assert float((tensors[name] - value).abs().max()) <= 1e-6, (count, name)


def test_no_rank_has_the_whole_model_when_a_first_row_is_scored(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the policy, nor a reference that is another model. What three ranks score is what one process does."""
    other, right = save_model(tmp_path / "other", seed=7), fill.read_packs
    keys = {**KEYS, "optim__epochs": 1, "reference": {"kind": "stored", "path": str(other), "store": "memory"}}

    def work(dist: Distributed) -> float:
        shares = [0.0]

        def measured(policy: Policy, *what: Any) -> Any:
            parameters = [*policy.module.parameters()]
            shares.append(sum(local(p).numel() for p in parameters) / sum(p.numel() for p in parameters))
            return right(policy, *what)

        monkeypatch.setattr(fill, "read_packs", measured)
        train(run_of(**keys, ranks__shard="layer", out=str(tmp_path / "cut")))
        return max(shares)

    shares = on_ranks(3, tmp_path / "on", work)
    assert 0.3 < max(shares) < 0.36, shares
    one = train(run_of(**keys, out=str(tmp_path / "one")))
    for a, b in zip(lines(one), lines(tmp_path / "cut"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


@pytest.mark.parametrize("adapter", [{}, {"adapter__rank": 4}], ids=str)
def test_a_reward_model_is_cut_by_layers(run_of: Callable[..., Run], tmp_path: Path, adapter: dict[str, int]) -> None:
    reward = {"objective__name": "reward", "reference__kind": "none", "reference__store": msgspec.UNSET}
    keys = {**KEYS, **reward, "optim__epochs": 1, **adapter}
    one = train(run_of(**keys, out=str(tmp_path / "one")))
    run = run_of(**keys, ranks__shard="layer", out=str(tmp_path / "cut"))
    on_ranks(2, tmp_path / "on", lambda _: str(train(run)))
    for a, b in zip(lines(one), lines(tmp_path / "cut"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert [event["off"] < 1e-4 for event in events(tmp_path / "cut", "layout")] == [True]


def test_out_of_memory_halves_packs_where_ranks_do_not_wait_for_each_other(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one rank of two, with whole weights in a step; where they are divided by layer the run ends and may go on."""
    right = Policy.token_logp

    def work(dist: Distributed, run: Run) -> str:
        def small(policy: Policy, batch: Any) -> torch.Tensor:
            if dist.rank == 1 and torch.is_grad_enabled() and batch.tokens > 40:
                raise torch.OutOfMemoryError
            return right(policy, batch)

        if run.batch.tokens == 5000:
            monkeypatch.setattr(
                train_module, "fit", lambda *state: (monkeypatch.setattr(Policy, "token_logp", small), fit(*state))
            )
        return str(train(run, resume=True, allow_change=["batch.tokens"]))

    keys = {**KEYS, "batch__tokens": 5000, "data__evaluate": None, "optim__epochs": 1}
    whole, cut = (run_of(**keys, ranks__shard=shard, out=str(tmp_path / shard)) for shard in ("none", "step"))
    on_ranks(2, tmp_path / "a", lambda _: str(train(whole)))
    on_ranks(2, tmp_path / "b", lambda dist: work(dist, cut))
    assert events(Path(cut.out), "out_of_memory")
    for a, b in zip(lines(Path(whole.out)), lines(Path(cut.out)), strict=True):
        assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-5)
    layer = run_of(**keys, ranks__shard="layer", out=str(tmp_path / "layer"))
    told = on_ranks(2, tmp_path / "c", lambda dist: work(dist, layer))
    assert [each["code"] for each in told] == [STOPPED] * 2
    assert any("batch.tokens: memory ran out" in each["text"] for each in told)
    layer = run_of(**{**keys, "batch__tokens": 40}, ranks__shard="layer", out=str(tmp_path / "layer"))
    on_ranks(2, tmp_path / "d", lambda dist: work(dist, layer))
    assert lines(Path(layer.out))[-1]["loss"] == pytest.approx(lines(Path(whole.out))[-1]["loss"], rel=1e-4)


@pytest.mark.parametrize("shard", SHARDS)
def test_a_number_that_is_not_finite_in_the_rows_of_one_rank_ends_all(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: str
) -> None:
    """In the gradient of one rank, and in the weights that it alone updates."""
    right = update.take_step

    def work(dist: Distributed, part: str) -> None:
        def broken(learner: Any, *how: Any) -> None:
            right(learner, *how)
            if dist.rank == 1:
                with torch.no_grad():
                    next(iter(learner.weights.trained().values())).to_local()[0] = float("nan")

        def scaled(policy: Policy, batch: Any) -> torch.Tensor:
            return logp(policy, batch) * (float("nan") if dist.rank == 1 and torch.is_grad_enabled() else 1.0)

        logp = Policy.token_logp
        if part == "weights":
            monkeypatch.setattr(update, "take_step", broken)
        else:
            monkeypatch.setattr(
                train_module, "fit", lambda *state: (monkeypatch.setattr(Policy, "token_logp", scaled), fit(*state))
            )
        train(run_of(data__evaluate=None, ranks__shard=shard, out=str(tmp_path / part)))

    for part, text in (("weights", "left weights that are not finite"), ("gradient", "were not finite")):
        told = on_ranks(2, tmp_path / f"on {part}", lambda dist, part=part: work(dist, part))
        ends(told, NON_FINITE, text)
        assert not (tmp_path / part / "checkpoints").exists()


@pytest.mark.parametrize("shard", SHARDS)
def test_a_rank_that_cannot_write_its_rows_fails_the_checkpoint_and_not_the_run(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: str
) -> None:
    """But for the last one, without which the run would be lost."""
    right = Folder.tensors

    def work(dist: Distributed, steps: int) -> str:
        def full(folder: Folder, name: str, tensors: Any) -> None:
            if dist.rank == 1 and len(lines(tmp_path / "run")) <= steps:
                raise OSError(28, "No space left on device")
            right(folder, name, tensors)

        monkeypatch.setattr(Folder, "tensors", full)
        return str(train(run_of(save__every=2, optim__epochs=1, ranks__shard=shard), resume=True))

    on_ranks(2, tmp_path / "a", lambda dist: work(dist, 3))
    assert [event["step"] for event in events(tmp_path / "run", "save_failed")] == [2]
    shutil.rmtree(tmp_path / "run")
    ends(on_ranks(2, tmp_path / "b", lambda dist: work(dist, 99)), IO, "No space left")
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == []


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_checkpoint_without_the_rows_of_a_rank_is_passed_over(
    run_of: Callable[..., Run], tmp_path: Path, damage: str
) -> None:
    run = run_of(save__every=3, optim__epochs=1, ranks__shard="step")
    on_ranks(2, tmp_path / "a", lambda _: str(train(run)))
    out, file = Path(run.out), "weights-00002-of-00002.safetensors"
    path = out / "checkpoints" / "step-00000007" / file
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-8])
    on_ranks(2, tmp_path / "b", lambda _: str(train(run, resume=True)))
    resumed = events(out, "resumed")[-1]
    assert resumed["step"] == 6
    assert file in resumed["passed_over"][0]


def test_what_cannot_be_divided_is_refused(run_of: Callable[..., Run], tmp_path: Path, world: Path) -> None:
    with pytest.raises(UserError, match=r'ranks\.shard: "step" has no effect: this is one process'):
        train(run_of(ranks__shard="step"))
    shards.refuse_shards(run_of(ranks__shard="none"), SINGLE_PROCESS)  # a run of several may go on in one
    moving = run_of(reference={"kind": "moving", "alpha": 0.5, "update_every": 2}, ranks__shard="layer")
    drawing = msgspec.structs.replace(moving, reference=None, rollout=Rollout())
    loaded = msgspec.structs.replace(run_of(ranks__shard="layer"), model=Model(path=tiny()))
    told = on_ranks(2, tmp_path / "on", lambda _: str(train(moving)))
    ends(told, 2, "ranks.shard: weights cannot be divided: the reference that follows is a second whole model")
    for run, text in ((drawing, "drawn by whole models"), (loaded, "given back whole")):
        with pytest.raises(UserError, match=text):
            shards.refuse_shards(run, Distributed(0, 2))


def test_ranks_that_do_not_see_the_folder_do_not_start(run_of: Callable[..., Run], tmp_path: Path) -> None:
    outs = [str(tmp_path / name) for name in ("one", "other")]
    told = on_ranks(2, tmp_path / "on", lambda dist: str(train(run_of(out=outs[dist.rank], ranks__shard="step"))))
    ends(told, 2, "rank 1 does not see this folder")
    assert not (tmp_path / "one" / "checkpoints").exists()


def test_a_moving_reference_follows_weights_that_are_divided_by_step(
    run_of: Callable[..., Run], tmp_path: Path
) -> None:
    keys = {**KEYS, "reference": {"kind": "moving", "alpha": 0.5, "update_every": 2}, "data__evaluate": None}
    runs = [run_of(**keys, ranks__shard=shard, out=str(tmp_path / shard)) for shard in ("none", "step")]
    for run in runs:
        on_ranks(2, tmp_path / f"on {run.ranks.shard}", lambda _, run=run: str(train(run)))
    for a, b in zip(*(lines(Path(run.out)) for run in runs), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


@pytest.mark.parametrize(("memory", "shard"), [(112, "none"), (111, "step"), (56, "step"), (55, "layer"), (9, "layer")])
def test_what_is_divided_is_the_first_that_fits(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: float, shard: str
) -> None:
    """memory: of the rank that has least, of which nine tenths are taken. Where nothing fits, as much is divided as can
    be: what is free is no exact number."""
    monkeypatch.setattr(shards, "bytes_of_a_rank", lambda *_: {"none": 100, "step": 50, "layer": 20})
    monkeypatch.setattr(shards, "memory_of_a_rank", lambda run, device, dist: 200 if dist.first else memory)
    run = run_of(optim__epochs=1, data__evaluate=None)
    on_ranks(2, tmp_path / "on", lambda _: str(train(run)))
    (event,) = events(Path(run.out), "shard")
    assert event["shard"] == shard
    assert event["text"].startswith(f"shard {shard}: a rank has ")

"""However a run on several ranks ends, all ranks end, one of them says why, and the run can go on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import events, lines, same, weights
from several import after_steps, ends, on_ranks

from preftune import files
from preftune.config.load import dump
from preftune.config.run import Run
from preftune.distributed import Distributed
from preftune.errors import BUG, CORRUPT, IO, NON_FINITE, STOPPED, UserError
from preftune.files import read_lines
from preftune.forward import scores
from preftune.forward.loss import Loss, LossOutput
from preftune.model.policy import Policy
from preftune.run.train import train
from preftune.training import loop


@pytest.fixture(scope="module")
def whole(keys_of: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of a run on two ranks that nothing ended."""
    folder = tmp_path_factory.mktemp("whole")
    run = keys_of(folder, optim__epochs=3)
    on_ranks(2, folder / "ranks", lambda _: str(train(run)))
    return Path(run.out)


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_on_one_rank_a_run_ends_on_the_other_and_goes_on(
    run_of: Callable[..., Run], whole: Path, tmp_path: Path, rank: int
) -> None:
    cut = run_of(save__every=1, optim__epochs=3)
    kill = after_steps(Path(cut.out), 4, lambda processes: processes[rank].kill())
    began = time.monotonic()
    told = on_ranks(2, tmp_path / "b", lambda _: str(train(cut)), kill)
    assert time.monotonic() - began < 20
    assert told[rank] is None
    assert told[1 - rank]["code"] == STOPPED
    assert "another rank has exited" in told[1 - rank]["text"]
    assert len(lines(Path(cut.out))) < 21
    on_ranks(2, tmp_path / "c", lambda _: str(train(cut, resume=True)))
    assert same(whole, Path(cut.out))
    assert not events(Path(cut.out), "note")


@pytest.mark.parametrize("signalled", [(0, 1), (1,)])
def test_a_signal_stops_all_ranks_at_one_step_and_one_rank_goes_on(
    run_of: Callable[..., Run], tmp_path: Path, signalled: tuple[int, ...]
) -> None:
    run = run_of(optim__epochs=12, optim__lr=1e-5)
    out = Path(run.out)

    def stop(processes: list) -> None:
        for rank in signalled:
            os.kill(processes[rank].pid, signal.SIGTERM)

    told = on_ranks(2, tmp_path / "a", lambda _: str(train(run)), after_steps(out, 3, stop))
    ends(told, STOPPED, "stopped by SIGTERM")
    done = len(lines(out))
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{done:08d}"]
    assert train(run, resume=True) == out
    assert [line["step"] for line in lines(out)] == list(range(1, 85))
    assert events(out, "resumed")[0]["step"] == done
    assert "world_size 2 -> 1" in events(out, "note")[0]["text"]


def test_more_ranks_may_take_over(run_of: Callable[..., Run], tmp_path: Path) -> None:
    """A moving reference and moments reach ranks that have no checkpoint on their disk."""
    keys = {"reference": {"kind": "moving", "alpha": 0.5, "update_every": 2}, "data__evaluate": None, "optim__lr": 1e-5}
    whole = train(run_of(**keys, out=str(tmp_path / "whole"), save__every=4))
    cut = run_of(**keys, out=str(tmp_path / "cut"), save__every=4)
    shutil.copytree(whole, tmp_path / "cut")
    for newer in sorted((tmp_path / "cut" / "checkpoints").iterdir())[1:]:
        files.delete(newer)
    on_ranks(3, tmp_path / "a", lambda _: str(train(cut, resume=True)))
    for a, b in zip(lines(whole), lines(tmp_path / "cut"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    one, two = map(weights, (whole, tmp_path / "cut"))
    assert all(torch.allclose(one[name], two[name], atol=5e-6) for name in one)


@pytest.mark.parametrize(("objective", "with_gradient"), [("dpo", True), ("kto", True), ("kto", False)])
def test_out_of_memory_on_one_rank_halves_packs_on_all_and_changes_nothing(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, with_gradient: bool
) -> None:
    """In the backward phase, or where an objective that couples rows has them scored first."""
    keys = {"objective__name": objective, "batch__tokens": 5000, "optim__epochs": 1, "optim__lr": 1e-5}
    keys |= {"data__evaluate": None}
    whole, cut = (run_of(**keys, out=str(tmp_path / name)) for name in ("whole", "cut"))
    place, name = (Policy, "token_logp") if with_gradient else (scores, "score_pack")
    right = getattr(place, name)

    def work(ranks: Distributed) -> int:
        failed: list[int] = []

        def small(policy, batch, *reads) -> object:
            if ranks.rank == 1 and torch.is_grad_enabled() == with_gradient and batch.tokens > 40:
                failed.append(batch.tokens)
                raise torch.OutOfMemoryError
            return right(policy, batch, *reads)

        monkeypatch.setattr(place, name, small)
        train(cut)
        return len(failed)

    on_ranks(2, tmp_path / "a", lambda _: str(train(whole)))
    told = on_ranks(2, tmp_path / "b", work)
    assert told[0] == 0
    assert 1 <= told[1] <= 12
    assert len(events(Path(cut.out), "out_of_memory")) >= 1
    for a, b in zip(lines(Path(whole.out)), lines(Path(cut.out)), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)


def test_a_row_that_does_not_fit_on_one_rank_is_named(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(ranks: Distributed) -> None:
        def none(policy: Policy, batch) -> torch.Tensor:
            if ranks.rank == 1 and torch.is_grad_enabled():
                raise torch.OutOfMemoryError
            return right(policy, batch)

        right = Policy.token_logp
        monkeypatch.setattr(Policy, "token_logp", none)
        train(run_of())

    ends(on_ranks(2, tmp_path / "a", work), 74, "does not fit into memory")


def test_a_number_that_is_not_finite_on_one_rank_is_applied_on_none(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, step = Policy.token_logp, loop.train_step

    def work(ranks: Distributed) -> None:
        def broken(policy: Policy, batch) -> torch.Tensor:
            return right(policy, batch) * (float("nan") if ranks.rank == 1 else 1.0)

        def from_the_first_step(*state: Any) -> None:
            monkeypatch.setattr(Policy, "token_logp", broken)  # the layout was tried before, and was right
            step(*state)

        monkeypatch.setattr(loop, "train_step", from_the_first_step)
        train(run_of(data__evaluate=None))

    ends(on_ranks(2, tmp_path / "a", work), NON_FINITE, "not finite")
    assert [line["loss"] for line in lines(tmp_path / "run")] == ["NaN", "NaN"]
    assert len(events(tmp_path / "run", "non_finite")) == 3


def test_ranks_that_see_other_rows_do_not_start(run_of: Callable[..., Run], tmp_path: Path, world: Path) -> None:
    (tmp_path / "other.jsonl").write_text((world / "pairs.jsonl").read_text().replace("w3 ", "w4 ", 1))
    paths = [str(world / "pairs.jsonl"), str(tmp_path / "other.jsonl")]
    told = on_ranks(2, tmp_path / "a", lambda ranks: str(train(run_of(data__train=paths[ranks.rank]))))
    ends(told, 2, "not the same on every rank: data.train")


def test_an_error_of_the_first_rank_ends_the_others(run_of: Callable[..., Run], tmp_path: Path) -> None:
    """The folder is another's; the other ranks ask no folder, and have to hear of it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    ends(on_ranks(3, tmp_path / "a", lambda _: str(train(run_of()))), 2, "thesis")
    with files.lock(tmp_path / "held" / ".lock"):
        told = on_ranks(2, tmp_path / "b", lambda _: str(train(run_of(out=str(tmp_path / "held")))))
    ends(told, 2, "another run is at work")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failing_disk_or_a_bug_on_one_rank_ends_all(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    right = Loss.__call__

    def work(ranks: Distributed) -> None:
        def planted(loss: Loss, *args: object) -> LossOutput:
            if ranks.rank == rank and len(read_lines(tmp_path / "run" / "metrics.jsonl")) > 0:
                raise ValueError("planted")
            return right(loss, *args)

        monkeypatch.setattr(Loss, "__call__", planted)
        try:
            train(run_of())
        except ValueError as error:
            raise UserError(str(error), code=BUG) from error

    ends(on_ranks(2, tmp_path / "a", work), BUG, "planted")


def test_what_one_rank_finds_wrong_each_rank_can_say(tmp_path: Path) -> None:
    """The first that fails is the one that speaks, and that may be any."""

    def work(dist: Distributed) -> list[str]:
        said = []
        for failing in ([1], [0], [0, 1], []):
            try:
                with dist.agreed():
                    if dist.rank in failing:
                        raise UserError("the disk is fůll.", location="out", code=IO)
            except UserError as error:
                said.append(f"{error.code} {error}")
        return said

    own = f"{IO} out: the disk is fůll."
    first, second = on_ranks(2, tmp_path / "a", work)
    assert first == [f"{IO} rank 1: out: the disk is fůll.", own, own]
    assert second == [own, f"{IO} rank 0: out: the disk is fůll.", own]


def test_weights_that_are_not_those_of_the_others_are_never_saved(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = loop.update

    def work(ranks: Distributed) -> None:
        def drifting(training, state, phase, step) -> dict:
            metrics = right(training, state, phase, step)
            if ranks.rank == 1:
                with torch.no_grad():
                    next(state.weights.module.parameters()).view(-1)[7] += 1e-6
            return metrics

        monkeypatch.setattr(loop, "update", drifting)
        train(run_of(save__every=2))

    ends(on_ranks(2, tmp_path / "a", work), CORRUPT, "no longer have the same weights")
    assert not (tmp_path / "run" / "checkpoints").exists()


def torchrun(run: Run, folder: Path, *words: str, restarts: int = 0) -> subprocess.Popen:
    file = folder / "run.toml"
    file.write_text(dump(run))
    call = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", f"--max-restarts={restarts}"]
    call += ["-m", "preftune"]
    return subprocess.Popen(
        [sys.executable, *call, "train", str(file), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_torchrun_trains_and_one_rank_speaks(run_of: Callable[..., Run], tmp_path: Path) -> None:
    run = run_of(optim__epochs=1)
    said, told = (process := torchrun(run, tmp_path)).communicate(timeout=120)
    assert process.returncode == 0, told
    assert told.count("writing the model and the page") == 1
    assert said.count("page   ") == 1
    assert len(lines(Path(run.out))) == 7
    assert (tmp_path / "run" / "environment.json").read_text().count('"world_size": 2') == 1


@pytest.mark.slow
def test_torchrun_shows_one_message(run_of: Callable[..., Run], tmp_path: Path) -> None:
    """A wrong key, a second run in a folder, and a signal, which every rank hears."""
    wrong = torchrun(run_of(), tmp_path, "optim.lrr=1")
    assert wrong.communicate(timeout=120)[1].count("optim.lrr") == 1
    long = run_of(optim__epochs=300, optim__lr=1e-6)
    process = torchrun(long, tmp_path)
    after_steps(Path(long.out), 3, lambda _: None)([])
    second = torchrun(long, tmp_path)
    assert second.communicate(timeout=120)[1].count("another run is at work") == 1
    process.terminate()
    told = process.communicate(timeout=120)[1]
    assert told.count("stopped by SIGTERM; everything done is saved.") == 1, told
    done = len(lines(Path(long.out)))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{done:08d}"]


@pytest.mark.slow
def test_torchrun_starts_a_run_again(run_of: Callable[..., Run], tmp_path: Path) -> None:
    """The new ranks must not look for the old ones, whose addresses and last words torchrun's store still has."""
    whole, cut = (run_of(optim__epochs=6, save__every=1, out=str(tmp_path / name)) for name in ("whole", "cut"))
    on_ranks(2, tmp_path / "a", lambda _: str(train(whole)))
    process = torchrun(cut, tmp_path, "--resume", restarts=1)
    after_steps(Path(cut.out), 4, lambda _: None)([])
    os.kill(int((tmp_path / "cut" / ".lock").read_text()), signal.SIGKILL)
    assert process.communicate(timeout=120)[1].count("another rank has exited") <= 1
    assert process.returncode == 0
    assert same(Path(whole.out), Path(cut.out))

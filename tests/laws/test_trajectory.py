"""One trajectory, whatever is shared, packed or stored, and however often it is interrupted."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from making import save_pairs
from recorded import events, lines, same, weights

from preftune.__main__ import main
from preftune.config.load import dump
from preftune.config.run import Run
from preftune.errors import BUG, STOPPED, UserError
from preftune.files import read_lines
from preftune.forward import forward, scores
from preftune.forward.loss import Loss
from preftune.run.train import train


def test_a_run_starts_at_ln_2_learns_and_exports(run_of: Callable[..., Run]) -> None:
    out = train(run_of(optim__epochs=5, optim__lr=3e-3))
    steps, held = lines(out), lines(out, "evaluations")
    assert [line["step"] for line in steps] == list(range(1, 36))
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert held[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert held[-1]["accuracy"] > 0.8
    assert held[-1]["loss"] < 0.6
    assert held[0]["chosen_logp_change"] == 0
    for side in ("chosen", "rejected"):
        change = held[-1][f"{side}_logp"] - held[0][f"{side}_logp"]
        assert held[-1][f"{side}_logp_change"] == pytest.approx(change, abs=1e-9)
        assert held[-1][f"{side}_reward"] == pytest.approx(0.1 * change, abs=1e-4)
    rows = list(read_lines(out / "evaluation_rows.jsonl"))
    mean = sum(row["chosen_logp_change"] for row in rows) / len(rows)
    assert mean == pytest.approx(held[-1]["chosen_logp_change"], abs=1e-9)
    assert steps[0]["chosen_incentive"] == pytest.approx(-0.05, abs=1e-5)
    assert all(line["tokens_shared"] > 0 for line in steps)
    assert (out / "report.html").stat().st_size > 1000
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(out / "model")
    assert AutoTokenizer.from_pretrained(out / "model")("w3 w4")["input_ids"][-2:] == [3, 4]
    assert all(torch.equal(p, weights(out)[n]) for n, p in model.named_parameters() if n in weights(out))
    assert json.loads((out / "identity.json").read_text())["objective.beta"] == 0.1


@pytest.fixture(scope="module")
def plain(keys_of: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of the usual run."""
    return train(keys_of(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def trained_shortly(keys_of: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(keys_of(tmp_path_factory.mktemp("short"), optim__epochs=1))


@pytest.fixture
def short(trained_shortly: Path, tmp_path: Path) -> Path:
    """A finished run of one epoch, where `run_of` would write it."""
    return shutil.copytree(trained_shortly, tmp_path / "run")


def test_the_same_run_twice_is_the_same_to_the_last_bit(run_of: Callable[..., Run], plain: Path) -> None:
    assert same(train(run_of()), plain)


@pytest.mark.parametrize(
    "changed",
    [
        {"batch__tokens": 60},
        {"batch__tokens": 5000},
        {"model__layout": "padded"},
        {"reference__store": "memory"},
        {"model__checkpointing": True},
    ],
    ids=str,
)
def test_how_it_is_computed_never_matters(run_of: Callable[..., Run], plain: Path, changed: dict) -> None:
    other = train(run_of(**changed))
    for a, b in zip(lines(plain), lines(other), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=2e-3)
    for name, value in weights(plain).items():
        assert torch.allclose(value, weights(other)[name], atol=2e-3)


def test_the_second_run_takes_the_reference_from_the_store(run_of: Callable[..., Run], tmp_path: Path) -> None:
    train(run_of(out=str(tmp_path / "a"), optim__epochs=1))
    out = train(run_of(out=str(tmp_path / "b"), objective__beta=0.3, optim__epochs=1, seed=5))
    (event,) = events(out, "reference")
    assert (event["scored"], event["reused"]) == (0, 124)


def command(run: Run, folder: Path) -> int:
    """A process, forked after import, that trains as the command does; what it says goes to folder/said."""
    (folder / "run.toml").write_text(dump(run))
    if child := os.fork():
        return child
    code = BUG
    try:
        sys.stderr, sys.argv = (folder / "said").open("w"), ["preftune", "train", str(folder / "run.toml")]
        main()
    except SystemExit as exited:
        code = int(exited.code or 0)
        sys.stderr.flush()
    finally:
        os._exit(code)


@pytest.fixture(scope="module")
def long(keys_of: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(keys_of(tmp_path_factory.mktemp("long"), optim__epochs=6))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_resumes_to_the_same_bits(
    run_of: Callable[..., Run], long: Path, tmp_path: Path, number: int
) -> None:
    cut, deadline = run_of(optim__epochs=6), time.monotonic() + 90
    child = command(cut, tmp_path)
    while len(read_lines(tmp_path / "run" / "metrics.jsonl")) < 5:
        assert os.waitpid(child, os.WNOHANG)[0] == 0, (tmp_path / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == STOPPED
    assert "--resume" in (tmp_path / "said").read_text()
    assert same(train(cut, resume=True), long)


def test_kills_at_any_moment_resume_to_the_same_bits(run_of: Callable[..., Run], tmp_path: Path) -> None:
    """Forked children are killed at random moments, saves included, until one gets through."""
    began = time.monotonic()
    whole = train(run_of(out=str(tmp_path / "whole"), save__every=1))
    took = time.monotonic() - began
    cut = run_of(out=str(tmp_path / "cut"), save__every=1)
    rng, kills = np.random.default_rng(0), 0
    while True:
        child = os.fork()
        if child == 0:
            try:
                train(cut, resume=True)
            except BaseException:
                os._exit(1)
            os._exit(0)
        time.sleep(took * float(rng.uniform(0.02, 0.4)) * (1 + kills / 10))
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            continue
        assert status == 0
        break
    assert kills >= 4
    assert same(whole, tmp_path / "cut")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"objective__beta": 0.5}, "objective.beta"),
        ({"optim__lr": 2e-3}, "optim.lr"),
        ({"seed": 4}, "seed"),
        ({"batch__rows": 4}, "batch.rows"),
        ({"optim__epochs": 3}, "optim.epochs"),
    ],
)
def test_another_run_does_not_go_on(run_of: Callable[..., Run], short: Path, changed: dict, named: str) -> None:
    with pytest.raises(UserError, match=named) as raised:
        train(run_of(**{"optim__epochs": 1, **changed}), resume=True)
    assert f"--allow-change {named}" in str(raised.value)
    train(run_of(**{"optim__epochs": 2, **changed}), resume=True, allow_change=[named, "optim.epochs"])


def test_a_run_that_is_done_does_not_become_another(run_of: Callable[..., Run], short: Path) -> None:
    """Its record would say what the model was not trained with."""
    before = {path: path.read_bytes() for path in short.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(UserError, match="this run is done"):
        train(run_of(optim__epochs=1, objective__beta=0.5), resume=True, allow_change=["objective.beta"])
    assert {path: path.read_bytes() for path in before} == before


def test_changed_rows_do_not_go_on(run_of: Callable[..., Run], tmp_path: Path, world: Path) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text((world / "pairs.jsonl").read_text())
    train(run_of(data__train=str(rows), optim__epochs=1))
    swapped = rows.read_text().replace('"chosen"', '"x"').replace('"rejected"', '"chosen"').replace('"x"', '"rejected"')
    rows.write_text(swapped)
    with pytest.raises(UserError, match=r"--allow-change data\.train"):
        train(run_of(data__train=str(rows), optim__epochs=1), resume=True)


def test_a_damaged_checkpoint_is_passed_over(run_of: Callable[..., Run], tmp_path: Path) -> None:
    whole = train(run_of(save__every=5, save__keep=9))
    newest = sorted((whole / "checkpoints").iterdir())[-1]
    with (newest / "weights.safetensors").open("r+b") as stream:
        stream.seek(500)
        stream.write(b"\x7f\x7f")
    kept = weights(whole)
    train(run_of(save__every=5, save__keep=9), resume=True)
    assert all(torch.equal(kept[name], value) for name, value in weights(whole).items())
    (event,) = events(whole, "resumed")
    assert "weights.safetensors" in event["passed_over"][0]


def test_going_on_and_replacing_contradict_each_other(run_of: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match="cannot be combined"):
        train(run_of(), resume=True, force=True)


def test_a_run_without_a_whole_checkpoint_does_not_begin_anew(run_of: Callable[..., Run]) -> None:
    whole = train(run_of(save__every=5, save__keep=2))
    for checkpoint in (whole / "checkpoints").iterdir():
        (checkpoint / "state.json").write_text("{}")
    metrics = (whole / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"no checkpoint is whole: .*state\.json.*--force") as caught:
        train(run_of(save__every=5, save__keep=2), resume=True)
    assert caught.value.code == 65
    assert (whole / "metrics.jsonl").read_bytes() == metrics


def test_two_runs_do_not_share_a_folder(run_of: Callable[..., Run], tmp_path: Path) -> None:
    from preftune import files

    with files.lock(tmp_path / "run" / ".lock"), pytest.raises(UserError, match="another run"):
        train(run_of())
    train(run_of(optim__steps=1, optim__epochs=None))
    with pytest.raises(UserError, match="--force"):
        train(run_of())
    train(run_of(optim__steps=2, optim__epochs=None), force=True)
    assert len(lines(tmp_path / "run")) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="thesis"):
        train(run_of(out=str(tmp_path / "other")), force=True)


def test_a_number_that_is_not_finite_is_never_applied(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Loss.__call__
    monkeypatch.setattr(Loss, "__call__", lambda *args: replace(right(*args), value=float("nan")))
    with pytest.raises(UserError, match="not finite") as raised:
        train(run_of(data__evaluate=None))
    assert raised.value.code == 3
    assert [line["loss"] for line in lines(tmp_path / "run")] == ["NaN", "NaN"]
    refused = events(tmp_path / "run", "non_finite")
    assert len(refused) == 3
    assert len(refused[0]["rows"]) == 8


def test_running_out_of_memory_halves_the_packs_and_changes_nothing(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from preftune.model.policy import Policy

    whole = train(run_of(out=str(tmp_path / "whole"), batch__tokens=5000, optim__epochs=1))
    right, failed = Policy.token_logp, []

    def small(policy: Policy, batch) -> torch.Tensor:
        if torch.is_grad_enabled() and batch.tokens > 100:
            failed.append(batch.tokens)
            raise torch.OutOfMemoryError
        return right(policy, batch)

    monkeypatch.setattr(Policy, "token_logp", small)
    cut = train(run_of(out=str(tmp_path / "cut"), batch__tokens=5000, optim__epochs=1))
    assert 1 <= len(failed) <= 6
    assert events(cut, "out_of_memory")
    for a, b in zip(lines(whole), lines(cut), strict=True):
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


@pytest.mark.usefixtures("short")
def test_other_held_out_rows_on_resume_are_refused(run_of: Callable[..., Run], tmp_path: Path) -> None:
    """Even where they are allowed to differ: what changed since the start could not be told."""
    save_pairs(tmp_path / "other.jsonl", 12, seed=9)
    other = run_of(optim__epochs=2, data__evaluate=str(tmp_path / "other.jsonl"))
    allowed = ["data.evaluate", "optim.epochs"]
    with pytest.raises(UserError, match="held-out rows"):
        train(other, resume=True, allow_change=allowed)


def test_memory_may_run_out_without_gradient_too(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the check before the first update, and in an evaluation on more rows than there are to train on."""
    right = forward.score_pack
    save_pairs(tmp_path / "few.jsonl", 6)
    save_pairs(tmp_path / "many.jsonl", 30, seed=1)

    def small(policy, batch, reads) -> object:
        if len(batch.groups) > 2:
            raise torch.OutOfMemoryError
        return right(policy, batch, reads)

    for module in (forward, scores):
        monkeypatch.setattr(module, "score_pack", small)
    keys = {"data__train": str(tmp_path / "few.jsonl"), "data__evaluate": str(tmp_path / "many.jsonl")}
    out = train(run_of(**keys, batch__tokens=400, optim__epochs=1))
    assert events(out, "out_of_memory")


def test_a_disk_that_is_full_at_one_save_does_not_end_a_run(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from preftune import folders

    right, full_at = folders.sync, ["step-00000003"]

    def sync(path: Path) -> None:
        if path.parent.name == "checkpoints" and len(list(path.parent.glob("step-*"))) >= 2 and full_at:
            full_at.pop()
            raise OSError(28, "No space left on device")
        right(path)

    monkeypatch.setattr(folders, "sync", sync)
    out = train(run_of(save__every=1, optim__epochs=1, data__evaluate=None))
    (event,) = events(out, "save_failed")
    assert event["step"] == 3
    assert "No space left on device" in event["text"]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000006", "step-00000007"]


def test_a_disk_that_is_full_at_the_last_save_ends_it(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from preftune import folders

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "sync", full)
    with pytest.raises(UserError, match="No space left on device") as raised:
        train(run_of(optim__epochs=1, data__evaluate=None))
    assert raised.value.code == 74


def test_a_disk_too_small_for_a_checkpoint_is_refused_before_the_first_update(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from preftune import files

    monkeypatch.setattr(files, "free", lambda path: 1000)
    with pytest.raises(UserError, match="a checkpoint takes 0 MiB, and 0 MiB are free here") as raised:
        train(run_of())
    assert raised.value.code == 74
    assert lines(tmp_path / "run") == []


@pytest.mark.parametrize("line", ["[]", "3", "{}", '{"step": "1"}', '{"step": null}', '{"step": 1.5}'])
@pytest.mark.parametrize("name", ["metrics", "evaluations", "events"])
def test_a_damaged_line_of_the_record_is_named_with_what_to_do(name: str, line: str, tmp_path: Path) -> None:
    from preftune.record.writer import RecordWriter

    (tmp_path / f"{name}.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(UserError, match=rf"{name}\.jsonl:2: this line has no step\. Delete it") as raised:
        RecordWriter(tmp_path).lines(f"{name}.jsonl")
    assert raised.value.code == 65


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 100, b'{"a": 1}'])
def test_a_damaged_baseline_is_one_sentence(content: bytes, run_of: Callable[..., Run], short: Path) -> None:
    (short / "start.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"start\.safetensors: cannot read"):
        train(run_of(optim__epochs=2), resume=True, allow_change=["optim.epochs"])

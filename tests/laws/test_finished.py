"""A finished run that is resumed stays as it is, and no file of another is deleted or overwritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from making import save_model
from safetensors.torch import load_file, save_file

from preftune import folders
from preftune.config.run import Run
from preftune.errors import CORRUPT, UserError
from preftune.events import listening
from preftune.files import read_lines
from preftune.run.export import checkpoint_as_model
from preftune.run.train import train

KEYS = {"data__evaluate": None, "optim__epochs": 1}


def state_of(out: Path) -> dict[str, tuple[int, bytes]]:
    """Each file of the model and the page, with the time of its last change."""
    files = [path for path in [*(out / "model").rglob("*"), out / "report.html"] if path.is_file()]
    return {str(path.relative_to(out)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_finished_run_is_not_exported_again(run_of: Callable[..., Run]) -> None:
    out = train(run_of(**KEYS))
    (out / "model" / "README.md").write_text("mine")
    (out / "model" / "gguf").mkdir()
    (out / "model" / "gguf" / "q4.bin").write_text("mine")
    (out / "model" / "generation_config.json").write_text('{"mine": 1}')
    (out / "report.html").write_text("mine")
    before = state_of(out)
    train(run_of(**KEYS), resume=True)
    assert state_of(out) == before
    assert read_lines(out / "events.jsonl")[-1]["event"] == "finished"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", folders.MANIFEST])
def test_what_is_missing_of_ours_is_written_again_beside_what_is_not(name: str, run_of: Callable[..., Run]) -> None:
    out = train(run_of(**KEYS))
    (out / "model" / "README.md").write_text("mine")
    (out / "model" / name).unlink()
    if name == folders.MANIFEST:  # nothing says any more whose these files are
        with pytest.raises(UserError, match="another has put this file there or changed it"):
            train(run_of(**KEYS), resume=True)
        return
    train(run_of(**KEYS), resume=True)
    assert folders.verify(out / "model") == ""
    assert (out / "model" / "README.md").read_text() == "mine"


def test_a_longer_run_replaces_its_own_files_and_no_others(run_of: Callable[..., Run]) -> None:
    out = train(run_of(**KEYS))
    (out / "model" / "README.md").write_text("mine")
    before, longer = (out / "model" / "model.safetensors").read_bytes(), run_of(**{**KEYS, "optim__epochs": 2})
    train(longer, resume=True, allow_change=["optim.epochs"])
    assert (out / "model" / "model.safetensors").read_bytes() != before
    assert folders.not_ours(out / "model") == ["README.md"]
    assert "14 steps" in (out / "events.jsonl").read_text()
    assert "14" in (out / "report.html").read_text()


def test_a_changed_file_that_a_longer_run_would_replace_is_named_before_it_trains(run_of: Callable[..., Run]) -> None:
    out = train(run_of(**KEYS))
    (out / "model" / "config.json").write_text("{}")
    before = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"config\.json: another has changed this file"):
        train(run_of(**{**KEYS, "optim__epochs": 2}), resume=True, allow_change=["optim.epochs"])
    assert (out / "metrics.jsonl").read_bytes() == before
    assert (out / "model" / "config.json").read_text() == "{}"
    told: list[str] = []
    with listening(lambda event: told.append(str(event))):
        train(run_of(**KEYS), resume=True)
    assert any("config.json since this run wrote it" in text for text in told)
    assert (out / "model" / "config.json").read_text() == "{}"


def test_a_checkpoint_with_a_file_of_another_is_not_rotated_away(run_of: Callable[..., Run]) -> None:
    out = train(run_of(**KEYS, save__every=1))
    note = sorted((out / "checkpoints").iterdir())[0] / "mine.txt"
    note.write_text("mine")
    train(run_of(**{**KEYS, "optim__epochs": 2}, save__every=1), resume=True, allow_change=["optim.epochs"])
    assert note.read_text() == "mine"


def test_a_kill_between_the_model_and_the_page_is_made_good(run_of: Callable[..., Run]) -> None:
    out = train(run_of(**KEYS))
    model = (out / "model" / "model.safetensors").stat().st_mtime_ns
    (out / "report.html").unlink()
    train(run_of(**KEYS), resume=True)
    assert (out / "report.html").exists()
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == model


KINDS = {
    "whole": {},
    "adapter": {"adapter.rank": 2},
    "adapter that begins as a part of the model": {"adapter.rank": 2, "adapter.start": "pissa"},
    "some of the model": {"model.trainable": ["*.mlp.*"]},
    "reward model": {"objective.name": "reward", "reference.kind": "none", "reference.store": msgspec.UNSET},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_exported_as_the_model_of_a_run_that_ended_there(
    kind: str, keys_of: Callable[..., Run], tmp_path: Path
) -> None:
    same = {**KEYS, **KINDS[kind], "optim.epochs": msgspec.UNSET, "optim.schedule": "constant", "optim.warmup": 0}
    short = train(keys_of(tmp_path / "short", **same, optim__steps=2))
    out = train(keys_of(tmp_path / "long", **same, optim__steps=4, save__every=2, save__keep=9))
    for step, model, off in ((2, short / "model", 1e-5), (4, out / "model", 0.0)):
        into = tmp_path / f"step-{step}"
        checkpoint_as_model(out, step, into)
        (path,) = model.glob("*.safetensors")
        tensors, others = load_file(path), load_file(into / path.name)
        assert tensors.keys() == others.keys()
        assert max(float((tensor - others[name]).abs().max()) for name, tensor in tensors.items()) <= off
    (out / "checkpoints" / "step-by-step").mkdir()
    with pytest.raises(UserError, match=r"no checkpoint of step 3. There are: 2, 4"):
        checkpoint_as_model(out, 3, tmp_path / "step-3")
    with pytest.raises(UserError, match="not empty"):
        checkpoint_as_model(out, 2, tmp_path / "step-4")
    (weights,) = (out / "checkpoints" / "step-00000002").glob("weights*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UserError, match="cannot be read") as caught:
        checkpoint_as_model(out, 2, tmp_path / "damaged")
    assert caught.value.code == CORRUPT
    assert not (tmp_path / "damaged").exists()


def test_a_checkpoint_is_exported_with_the_model_that_its_run_began_from_and_nowhere_into_it(
    keys_of: Callable[..., Run], tmp_path: Path
) -> None:
    save_model(tmp_path / "base")
    out = train(keys_of(tmp_path, **KEYS, model__path=str(tmp_path / "base"), adapter__rank=2))
    step = int(next((out / "checkpoints").iterdir()).name.rpartition("-")[2])
    for into in (out / "early", out / "model" / "early"):
        with pytest.raises(UserError, match="which is read"):
            checkpoint_as_model(out, step, into)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model.path: is not the model that the run began from"):
        checkpoint_as_model(out, step, tmp_path / "early")
    with pytest.raises(UserError, match="is no run"):
        checkpoint_as_model(tmp_path / "base", step, tmp_path / "early")
    assert not (tmp_path / "early").exists()

"""`--force` takes a run away once nothing refuses the new one any more, a refused resume scores nothing, and the modes
of torch that a caller is in change no run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from killed import Killed
from making import save_model
from recorded import same
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.config.run import Run
from preftune.errors import UserError
from preftune.model.config import Model
from preftune.record import replace
from preftune.run import reference_model, resume
from preftune.run.score import score
from preftune.run.train import train

KEYS = {"data__evaluate": None, "optim__epochs": 1}


@pytest.fixture
def out(run_of: Callable[..., Run]) -> Path:
    return train(run_of(**KEYS))


def all_of(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


REFUSED = {
    "no rows": ({"data__train": "nofile.jsonl"}, "there is no such file"),
    "no model": ({"model__path": "nomodel"}, "nomodel"),
    "other rows": ({"objective__name": "odpo"}, "needs a score"),
    "no adapter": ({"adapter__path": "nofolder"}, "is no adapter"),
    "no reference": ({"reference__path": "./nofolder"}, "nofolder"),
    "a long warm-up": ({"optim__warmup_steps": 100}, "warm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_that_is_refused_deletes_nothing(case: str, run_of: Callable[..., Run], out: Path) -> None:
    keys, message = REFUSED[case]
    before = all_of(out)
    with pytest.raises(UserError, match=message):
        train(run_of(**{**KEYS, **keys}), force=True)
    assert all_of(out) == before


def test_a_run_does_not_replace_what_it_begins_from(run_of: Callable[..., Run], out: Path) -> None:
    before = all_of(out)
    for key in ("model__path", "reference__path"):
        with pytest.raises(UserError, match="which --force replaces"):
            train(run_of(**{**KEYS, key: str(out / "model")}), force=True)
    assert all_of(out) == before


def test_a_kill_as_one_run_replaces_another_is_taken_up(
    run_of: Callable[..., Run], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = run_of(**KEYS, seed=5)
    alone = train(run_of(**KEYS, seed=5, out=str(tmp_path / "alone")))
    first = train(run_of(**KEYS, out=str(tmp_path / "first")))
    right = resume.record_run

    def dying(*values: object) -> None:
        right(*values)  # type: ignore[arg-type]
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(resume, "record_run", dying)
        patch.setattr(replace, "put_back", lambda _: None)  # as nothing is cleaned up
        with pytest.raises(Killed):
            train(other, force=True)
    assert not (out / "model").exists()
    assert same(train(run_of(**KEYS), resume=True), first)
    assert same(train(other, force=True), alone)
    assert not (out / replace.ASIDE).exists()


def test_a_run_that_may_not_go_on_is_refused_before_the_reference_scores(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: Path
) -> None:
    save_model(tmp_path / "other", seed=5)
    scored: list[object] = []
    monkeypatch.setattr(reference_model, "score_missing", lambda *values, **_: scored.append(values))
    keys = {"optim__lr": 2e-3}, {"reference__path": str(tmp_path / "other")}, {"model__path": str(tmp_path / "other")}
    for changed in ({"optim__steps": 2, "optim__epochs": None}, *keys):
        run = run_of(**{**KEYS, "reference__store": "memory", **changed})
        with pytest.raises(UserError, match="another run is in this folder"):
            train(run, resume=True)
    assert scored == []


def test_gradients_are_taken_whatever_mode_the_caller_is_in(run_of: Callable[..., Run], out: Path) -> None:
    tuned = run_of(model__path=str(out / "model"), data__evaluate=None)
    means = score(tuned)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert same(train(run_of(**KEYS, out=str(out.with_name(mode.__name__)))), out), mode
            assert score(tuned) == means
            assert not torch.is_grad_enabled()
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            with pytest.raises(UserError, match=r"model\.compute: this call stands in torch\.autocast"):
                train(run_of(**KEYS))
            with pytest.raises(UserError, match=r"stands in torch\.autocast"):
                score(tuned)


def test_a_model_that_was_made_without_gradients_is_named(run_of: Callable[..., Run], world: Path) -> None:
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(world / "model")
    own = Model(path=model, tokenizer=AutoTokenizer.from_pretrained(world / "model"))
    with pytest.raises(UserError, match=r"model\.path: this model was made in torch\.inference_mode"):
        train(msgspec.structs.replace(run_of(**KEYS), model=own))

"""`preftune score` asks the reference for all that it judges, whatever a run on these rows would have asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from making import save_model
from msgspec.structs import replace
from several import on_ranks
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.cli.score import words_of
from preftune.config.load import load
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.files import read_lines
from preftune.model.config import Model
from preftune.reference.config import Moving
from preftune.run.score import score
from preftune.run.train import train

CASES = [{"optim__steps": 1, "optim__epochs": None}, {"objective__name": "kto"}, {"objective__name": "bco"}]


def against_itself(run_of: Callable[..., Run], **keys: object) -> Run:
    return run_of(**keys, data__evaluate=None, reference__path=run_of().model.path)


@pytest.mark.parametrize("keys", CASES, ids=str)
def test_all_rows_are_scored(run_of: Callable[..., Run], keys: dict[str, object]) -> None:
    metrics = score(against_itself(run_of, **keys))
    assert metrics["rows"] == 50
    assert metrics["loss"] is not None


def test_ranks_without_a_whole_model_score_what_one_process_does(run_of: Callable[..., Run], tmp_path: Path) -> None:
    keys = {"reference__store": "memory", "batch__tokens": 60}
    one = score(against_itself(run_of, **keys), tmp_path / "one")
    cut = against_itself(run_of, **keys, ranks__shard="layer")
    assert len(on_ranks(3, tmp_path / "on", lambda _: score(cut, tmp_path / "cut"))) == 3
    ours, theirs = (list(map(json.loads, (tmp_path / name).read_text().splitlines())) for name in ("one", "cut"))
    assert [row["chosen"]["logp"] for row in ours] == pytest.approx([row["chosen"]["logp"] for row in theirs], rel=1e-5)
    assert len(ours) == one["rows"] == 50


def test_what_a_run_has_tuned_is_held_against_what_the_run_began_from(
    run_of: Callable[..., Run], tmp_path: Path
) -> None:
    run = run_of(optim__epochs=1, evaluate__samples=0)
    out = train(run)
    last = read_lines(out / "evaluations.jsonl")[-1]
    tuned = run_of(model__path=str(out / "model"), data__train="", data__holdout=0.0)
    means = score(tuned, tmp_path / "rows.jsonl")
    for name in ("rows", "margin", "accuracy", "chosen_logp", "loss"):
        assert means[name] == pytest.approx(last[name], rel=1e-4), name
    with pytest.raises(UserError, match="nothing here says what this model was tuned from"):
        score(run_of(data__evaluate=None))
    assert score(run_of(data__evaluate=None, objective="nll", reference=None))["rows"] == 50


@pytest.mark.parametrize("keys", [{"adapter__rank": 4}, {"optim__lr": 3e-3}], ids=["adapter", "whole"])
def test_runs_in_half_precision_are_scored_in_any(keys: dict, run_of: Callable[..., Run], tmp_path: Path) -> None:
    """How updates were rounded says nothing of a model that is only asked."""
    out = train(run_of(**keys, optim__epochs=1, model__weights="bfloat16", evaluate__samples=0))
    last = read_lines(out / "evaluations.jsonl")[-1]
    for word in ([], ["model.weights=float32"]):
        folder, *words = words_of([str(out), *word, f"data.train={run_of().data.evaluate}"], None)
        means = score(load(Path(folder) / "run.toml", words))
        assert means["chosen_logp"] == pytest.approx(last["chosen_logp"], rel=0.02)


@pytest.mark.parametrize("kind", ["an adapter", "a moving reference"])
def test_the_start_of_other_runs_is_known_too(run_of: Callable[..., Run], tmp_path: Path, kind: str) -> None:
    run = run_of(optim__epochs=2, evaluate__samples=0, **({"adapter__rank": 4} if kind == "an adapter" else {}))
    out = train(replace(run, reference=Moving()) if kind == "a moving reference" else run)
    last = read_lines(out / "evaluations.jsonl")[-1]
    folder, *words = words_of([str(out), str(run.data.evaluate)], None)
    means = score(load(Path(folder) / "run.toml", words))
    assert means["chosen_logp"] == pytest.approx(last["chosen_logp"], rel=1e-4)
    assert means["accuracy"] != 0.5
    assert abs(means["margin"] or 0) > 0.05


def test_another_model_under_the_name_of_the_start_is_refused(run_of: Callable[..., Run], tmp_path: Path) -> None:
    start = save_model(tmp_path / "start", seed=3)
    out = train(run_of(model__path=str(start), optim__epochs=1, evaluate__samples=0))
    save_model(tmp_path / "start", seed=4)
    with pytest.raises(UserError, match="is not the model that the run began from"):
        score(run_of(model__path=str(out / "model"), data__evaluate=None))
    loaded = AutoModelForCausalLM.from_pretrained(out / "model")
    own = Model(path=loaded, tokenizer=AutoTokenizer.from_pretrained(out / "model"))
    with pytest.raises(UserError, match="nothing here says what this model was tuned from"):
        score(replace(run_of(data__evaluate=None), model=own))


def test_an_objective_that_draws_says_nothing_of_rows(run_of: Callable[..., Run]) -> None:
    run = run_of(objective="rloo", data__evaluate=None, rollout={"max_tokens": 4}, reward={"verify": "exact"})
    with pytest.raises(UserError, match=r"rloo learns from what it draws.*objective=dpo"):
        score(run)


def test_what_is_no_run_or_a_broken_record_is_one_sentence(run_of: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data: must be a table"):
        score(Run(data="rows.jsonl"))  # type: ignore[arg-type]
    out = train(run_of(optim__epochs=1, evaluate__samples=0))
    asked = run_of(model__path=str(out / "model"), data__evaluate=None)
    (out / "identity.json").write_text("{")
    with pytest.raises(UserError, match="identity"):
        score(asked)
    (out / "run.toml").write_text("[model")
    with pytest.raises(UserError, match="not TOML"):
        score(asked)

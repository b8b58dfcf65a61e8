"""A run may export the best weights that it has evaluated, and end where nothing gets better: however it is
interrupted, it is one run."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from killed import DISK, Killed, killed_at
from msgspec.structs import replace as changed
from recorded import events, lines, same, weights
from safetensors.torch import load_file
from several import on_ranks

from preftune import files
from preftune import objective as o
from preftune.config.run import Run
from preftune.config.vary import combinations
from preftune.errors import CORRUPT, IO, UserError
from preftune.record.best import best_of, evaluation_of_model, outcome
from preftune.record.reader import Record
from preftune.rollout.draw import Drawn
from preftune.rollout.embedded import Embedded
from preftune.rows.split import read_rows
from preftune.run.export import checkpoint_as_model
from preftune.run.preview import preview
from preftune.run.sweep import train_all
from preftune.run.train import train
from preftune.training import loop

KEYS = {"optim__epochs": 2, "evaluate__every": 2, "evaluate__samples": 2, "save__best": True, "save__keep": 1}
KINDS = {
    "whole": {},
    "adapter": {"adapter.rank": 2},
    "adapter that begins as a part of the model": {"adapter.rank": 2, "adapter.start": "pissa"},
    "reward model": {"objective.name": "reward", "reference.kind": "none", "reference.store": msgspec.UNSET},
}
BEST_AT_4 = (0.5, 0.9, 0.9, 0.7, 0.6, 0.8, 0.6)  # after 2, 4, 6, ... updates; 14 are made
Figures = Callable[[Sequence[object]], None]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Figures:
    """Lets evaluations after the start, which are made every two updates, have these accuracies."""
    right = loop.evaluate_rows

    def let(accuracies: Sequence[object]) -> None:
        def evaluate_rows(training, state, record) -> object:
            evaluation = right(training, state, record)
            made_up = {"accuracy": accuracies[state.step // 2 - 1]} if state.step else {}
            return replace(evaluation, metrics=evaluation.metrics | made_up)

        monkeypatch.setattr(loop, "evaluate_rows", evaluate_rows)

    return let


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def saved(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").iterdir())


def evaluated(out: Path) -> list[int]:
    return [line["step"] for line in lines(out, "evaluations")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_weights_are_exported_as_export_does(
    kind: str, run_of: Callable[..., Run], figures: Figures, tmp_path: Path
) -> None:
    figures(BEST_AT_4)
    out = train(run_of(**KEYS, **KINDS[kind]))
    assert saved(out) == [4, 14]
    checkpoint_as_model(out, 4, tmp_path / "early")
    checkpoint_as_model(out, 14, tmp_path / "late")
    assert content(tmp_path / "early") == content(out / "model")
    assert content(tmp_path / "late") != content(out / "model")
    (event,) = events(out, "best")
    assert "the model is that of step 4, the best of 7 evaluations: accuracy 90.0%" in event["text"]
    assert "The model is that of step 4" in (out / "report.html").read_text()
    assert evaluation_of_model(Record.open(out))["step"] == 4


def test_no_number_of_a_run_depends_on_what_is_kept_of_it(run_of: Callable[..., Run], tmp_path: Path) -> None:
    keys = {**KEYS, "optim__lr": 3e-3}
    plain = train(run_of(**{**keys, "save__best": False}, out=str(tmp_path / "plain")))
    best = train(run_of(**keys, evaluate__best_by="loss"))
    assert all(lines(plain, name) == lines(best, name) for name in ("metrics", "evaluations"))
    lowest = min(lines(best, "evaluations")[1:], key=lambda line: line["loss"])["step"]
    assert {lowest, 14} <= {*saved(best)}
    assert events(best, "best")[0]["of"] == lowest


def test_training_ends_where_nothing_gets_better(run_of: Callable[..., Run], figures: Figures, tmp_path: Path) -> None:
    figures(BEST_AT_4)
    run = run_of(**KEYS, evaluate__patience=2)
    out = train(run)
    assert evaluated(out) == [0, 2, 4, 6, 8]
    assert saved(out) == [4, 8]
    assert lines(out, "events")[-1]["event"] == "finished"
    assert all(sample.after is not None for sample in Record.open(out).samples)
    assert lines(out, "evaluations")[-1].keys() >= {"kl", "ended"}
    sentence = "topped early at step 8 of 14: no better for 2 evaluations"
    assert sentence in events(out, "stopped_early")[0]["text"]
    assert sentence in (out / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (*(out / "model").iterdir(), out / "report.html")}
    (out / "model" / "config.json").write_text("mine")  # a finished run replaces nothing
    train(run, resume=True)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.name != "config.json")
    assert evaluated(out) == [0, 2, 4, 6, 8]
    other = run_of(**KEYS, evaluate__patience=2, optim__lr=1e-4)
    with pytest.raises(UserError, match="this run is done"):
        train(other, resume=True, allow_change=["optim.lr"])


def test_with_more_patience_it_goes_on_as_if_it_had_had_it(
    run_of: Callable[..., Run], figures: Figures, tmp_path: Path
) -> None:
    figures(BEST_AT_4)
    whole = train(run_of(**KEYS, evaluate__patience=4, out=str(tmp_path / "whole")))
    assert evaluated(whole) == [0, 2, 4, 6, 8, 10, 12]
    train(run_of(**KEYS, evaluate__patience=2))
    longer = run_of(**KEYS, evaluate__patience=4)
    with pytest.raises(UserError, match=r"--allow-change evaluate\.patience"):
        train(longer, resume=True)
    out = train(longer, resume=True, allow_change=["evaluate.patience"])
    assert same_but_texts(out, whole)
    assert "stopped_early" in outcome(Record.open(out))
    assert outcome(Record.open(out))["stopped_early"].step == 12


def same_but_texts(out: Path, other: Path) -> bool:
    """Whether two runs are the same, but for the texts that the first has drawn where it ended before."""
    evaluations = [[(line["step"], line["loss"]) for line in lines(path, "evaluations")] for path in (out, other)]
    return evaluations[0] == evaluations[1] and content(out / "model") == content(other / "model")


def test_a_kill_at_any_change_of_the_disk_leaves_the_same_run(
    run_of: Callable[..., Run], figures: Figures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures(BEST_AT_4)
    keys = {**KEYS, "evaluate__patience": 3, "evaluate__samples": 0, "reference__store": "memory"}
    whole = train(run_of(**keys, out=str(tmp_path / "whole")))
    assert saved(whole) == [4, 10]
    call, ended = 40, False
    while not ended:
        run = run_of(**keys, out=str(tmp_path / str(call)))
        with killed_at(call, monkeypatch, DISK):
            try:
                train(run)
                ended = True
            except Killed:
                pass
        train(run, resume=True)
        assert same(whole, Path(run.out)), call
        assert saved(Path(run.out)) == [4, 10]
        shutil.rmtree(run.out)
        call += 23
    assert call > 150


@pytest.mark.parametrize("shard", ["none", "step", "layer"])
def test_all_ranks_end_at_one_step_and_export_the_best(
    shard: str, run_of: Callable[..., Run], figures: Figures, tmp_path: Path
) -> None:
    figures(BEST_AT_4)
    run = run_of(**KEYS, evaluate__patience=2, ranks__shard=shard)
    on_ranks(2, tmp_path / "ranks", lambda _: str(train(run)))
    out = Path(run.out)
    assert saved(out) == [4, 8]
    checkpoint_as_model(out, 4, tmp_path / "early")
    assert content(tmp_path / "early") == content(out / "model")
    shutil.rmtree(out / "model")
    on_ranks(2, tmp_path / "again", lambda _: str(train(run, resume=True)))
    assert content(tmp_path / "early") == content(out / "model")
    assert evaluated(out) == [0, 2, 4, 6, 8]


def test_each_run_of_a_sweep_ends_by_itself(run_of: Callable[..., Run], figures: Figures, tmp_path: Path) -> None:
    figures(BEST_AT_4)
    tree = {k: v for k, v in msgspec.to_builtins(run_of(**KEYS)).items() if v is not None}
    outs = train_all(combinations(tree, ["evaluate.patience=1,4"]), tmp_path / "sweep")
    assert [evaluated(out)[-1] for out in outs] == [6, 12]
    assert content(outs[0] / "model") == content(outs[1] / "model")


def alike(prompt: str, responses: Sequence[str], answer: str | None) -> list[float]:
    return [1.0 for _ in responses]


def test_a_run_that_draws_ends_without_another_phase(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that are all equal are no better; 2 updates a phase."""

    def online(out: str, **keys: object) -> Run:
        keys = {"rollout__tasks": 4, "rollout__responses": 3, "rollout__max_tokens": 5, "batch__rows": 2, "out": out,
                "evaluate__samples": 0, "optim__epochs": None, "optim__steps": 9, "evaluate__every": 2,
                "evaluate__patience": 2, "save__best": True, "save__every": 2} | keys  # fmt: skip
        rows = [{"prompt": f"w{i} w{i + 3} w{i + 7}"} for i in range(3, 13)]
        run = run_of(**keys)
        data = changed(run.data, train=rows[:8], evaluate=rows[8:])
        return changed(run, objective=o.RLOO(), reward=alike, data=data)

    whole = train(online(str(tmp_path / "whole")))
    assert evaluated(whole) == [0, 2, 4, 6]
    assert [line["step"] for line in lines(whole, "phases")] == [0, 2, 4]
    kept = load_file(whole / "checkpoints" / "step-00000002" / "weights.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(whole).items())
    run = online(str(tmp_path / "cut"))
    draws, right = [], Embedded.draw

    def draw(*arguments) -> Drawn:
        draws.append(1)
        if len(draws) == 8:  # that of the evaluation which ends the run
            raise Killed
        return right(*arguments)

    monkeypatch.setattr(Embedded, "draw", draw)
    with pytest.raises(Killed):
        train(run)
    assert (saved(Path(run.out))[-1], evaluated(Path(run.out))[-1]) == (6, 4)
    out = train(run, resume=True)
    assert [line["step"] for line in lines(out, "phases")] == [0, 2, 4]
    assert same(whole, out)
    made = len(draws)
    train(run, resume=True)
    assert len(draws) == made


def test_what_is_best_and_for_how_long() -> None:
    def best(*figures: object, name: str = "accuracy") -> tuple[int, int]:
        best = best_of([{"step": step, name: figure} for step, figure in enumerate(figures)])
        return best.step, best.later

    assert best(0.9, 0.5, 0.6) == (2, 0)  # what was there before training is no result of it
    assert best(0.5, 0.7, 0.7, 0.7) == (1, 2)
    assert best(3.0, 2.0, 1.0, 2.0, name="loss") == (2, 1)
    assert best(3.0, "NaN", 2.0, math.nan, math.inf, None, name="loss") == (2, 3)
    assert best(3.0, "NaN", "Infinity", name="loss") == (0, 2)
    assert best(0.0) == (0, 0)
    lines = [{"step": 0}, {"step": 1, "loss": 1.0, "accuracy": 0.6}, {"step": 2, "loss": 0.9, "accuracy": 0.5}]
    assert best_of(lines).step == 1
    assert best_of(lines, "loss").step == 2


def test_figures_that_are_not_finite_are_never_the_best(run_of: Callable[..., Run], figures: Figures) -> None:
    figures([math.nan] * 7)
    out = train(run_of(**KEYS, evaluate__patience=3))
    assert evaluated(out) == [0, 2, 4, 6]
    assert "no evaluation has a finite figure" in events(out, "best")[0]["text"]


def test_a_best_that_is_gone_is_told_before_training_goes_on(
    run_of: Callable[..., Run], figures: Figures, tmp_path: Path
) -> None:
    figures(BEST_AT_4)
    out = train(run_of(**{**KEYS, "save__best": False}, evaluate__patience=2))
    later = run_of(**KEYS, evaluate__patience=4)
    before = (out / "evaluations.jsonl").read_bytes()
    with pytest.raises(UserError, match="the best step so far is 4, and its checkpoint is not whole") as caught:
        train(later, resume=True, allow_change=["save.best", "evaluate.patience"])
    assert caught.value.code == CORRUPT
    assert (out / "evaluations.jsonl").read_bytes() == before


def test_a_best_that_cannot_be_saved_ends_the_run_which_can_go_on(
    run_of: Callable[..., Run], figures: Figures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures(BEST_AT_4)
    whole = train(run_of(**KEYS, out=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        right = files.sync

        def full(path: Path) -> None:
            if path.parent.name == "checkpoints" and saved_at_2.exists():
                raise OSError(28, "No space left on device")
            right(path)

        saved_at_2 = tmp_path / "run" / "checkpoints" / "step-00000002"
        patch.setattr("preftune.folders.sync", full)
        with pytest.raises(UserError, match="No space left") as caught:
            train(run_of(**KEYS))
    assert caught.value.code == IO
    assert same(train(run_of(**KEYS), resume=True), whole)


WRONG = {
    "no row is held out": {"data__evaluate": None},
    "held-out rows are measured at the end alone": {"evaluate__every": None},
    "it needs 1 evaluations before the last of 14 updates, and there are 0": {"evaluate__every": 14},
    "it needs 3 evaluations before the last of 14 updates, and there are 2": {
        "evaluate__every": 5,
        "evaluate__patience": 2,
    },
    "have no score of drawn responses": {"evaluate__best_by": "score"},
    "neither save.best nor evaluate.patience is given": {"save__best": False, "evaluate__best_by": "loss"},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_key_without_effect_is_refused(message: str, run_of: Callable[..., Run], tmp_path: Path) -> None:
    run = run_of(**KEYS | WRONG[message])
    for begin in (train, lambda run: preview(run, read_rows(run.data))):  # the latter is `preftune check`
        with pytest.raises(UserError, match=message):
            begin(run)
    assert not (tmp_path / "run" / "identity.json").exists()


def test_accuracy_needs_rows_that_say_what_is_better(run_of: Callable[..., Run], tmp_path: Path) -> None:
    run = run_of(**KEYS, evaluate__best_by="accuracy", objective__name="nll", reference__kind="none",
                 reference__store=msgspec.UNSET)  # fmt: skip
    rows = [{"prompt": f"w{i} w{i + 3}", "completion": f"w{i + 4} w{i + 1}"} for i in range(3, 23)]
    alone = changed(run, data=changed(run.data, train=rows, evaluate=None, holdout=0.2))
    with pytest.raises(UserError, match="there is no accuracy"):
        train(alone)
    assert saved(train(run))[-1] == 14

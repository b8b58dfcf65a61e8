"""Runs of a sweep share what they can, and are the runs that they would have been alone."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from making import save_model, tiny
from recorded import lines, same
from several import on_ranks
from torch import Tensor
from transformers import AutoTokenizer

from preftune import events
from preftune.config.run import Run
from preftune.config.vary import Variant, combinations
from preftune.errors import PeerRankError, UserError
from preftune.files import read_lines
from preftune.model.config import Model
from preftune.objective import DPO, IPO
from preftune.objective.responses import Pairs
from preftune.run import dataset
from preftune.run import sweep as run_sweep
from preftune.run import train as run_train
from preftune.run.sweep import RunsFailed, sweep, train_all
from preftune.run.train import train
from preftune.signals import Stopped


def tree_of(run: Run) -> dict:
    tree = msgspec.to_builtins(run)
    return {key: value for key, value in tree.items() if value is not None}


def reference(out: Path) -> dict | None:
    return next((e for e in read_lines(out / "events.jsonl") if e["event"] == "reference"), None)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs whose rows were read and made tokens."""
    made: list[Run] = []
    right = dataset.load_dataset
    monkeypatch.setattr(dataset, "load_dataset", lambda run: made.append(run) or right(run))
    return made


def test_one_tokenization_one_reference_pass_and_each_run_its_own(
    run_of: Callable[..., Run], tmp_path: Path, counted: list[Run]
) -> None:
    runs = combinations(tree_of(run_of(optim__epochs=1)), ["objective=dpo,ipo,ln_dpo,nca,hinge", "objective.beta=0.3"])
    said: list[events.Event] = []
    with events.listening(said.append):
        done = train_all(runs, tmp_path / "sweep")
    assert [path.name for path in done] == [f"objective={name}" for name in ("dpo", "ipo", "ln_dpo", "nca", "hinge")]
    assert len(counted) == 1
    assert [(e["scored"], e["reused"]) for e in map(reference, done) if e] == [(124, 0)] + [(0, 124)] * 4
    assert events.Note("run 2 of 5: objective=ipo (it has no objective.beta)") in said
    alone = train(msgspec.structs.replace(runs[1].run, out=str(tmp_path / "alone")))
    assert same(alone, done[1])
    page = (tmp_path / "sweep" / "compare.html").read_text()
    assert "5 runs side by side, differing in objective." in page
    assert all(word in page for word in ("points on 12 common rows", "objective=hinge"))


def test_other_rows_are_read_again(run_of: Callable[..., Run], tmp_path: Path, counted: list[Run]) -> None:
    """A seed decides nothing about rows: those held out are the same."""
    held = tree_of(run_of(data__holdout=0.2, data__evaluate=msgspec.UNSET, optim__epochs=1, objective__name="dpo"))
    done = train_all(combinations(held, ["seed=0,1", "data.max_tokens=60,80"]), tmp_path / "held")
    assert len(counted) == 2
    assert len({tuple(sorted(row["id"] for row in read_lines(path / "evaluation_rows.jsonl"))) for path in done}) == 1


def test_what_the_last_run_would_refuse_shows_before_the_first(run_of: Callable[..., Run], tmp_path: Path) -> None:
    runs = combinations(tree_of(run_of(optim__epochs=1)), ["objective=dpo,odpo"])
    with pytest.raises(UserError, match="needs a score"):
        train_all(runs, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_loaded_model_is_no_start_for_several_runs(run_of: Callable[..., Run], tmp_path: Path) -> None:
    variants = combinations(tree_of(run_of(optim__epochs=1)), ["objective.beta=0.1,0.2"])
    own = Model(path=tiny(), tokenizer=AutoTokenizer.from_pretrained(variants[0].run.model.path))
    loaded = [each._replace(run=msgspec.structs.replace(each.run, model=own)) for each in variants]
    with pytest.raises(UserError, match="that the one before has tuned"):
        train_all(loaded, tmp_path / "s")


def test_a_sweep_without_reference_and_with(run_of: Callable[..., Run], tmp_path: Path) -> None:
    """The reference is left out where it is not used; what compares the runs means the same in both."""
    runs = combinations(tree_of(run_of(optim__epochs=4)), ["objective=dpo,simpo"])
    assert [run.lacks for run in runs] == [[], ["reference"]]
    done = train_all(runs, tmp_path / "s")
    page = (tmp_path / "s" / "compare.html").read_text()
    assert "Since start: accuracy" in page
    for path in done:
        first, last = (read_lines(path / "evaluations.jsonl")[at] for at in (0, -1))
        assert first["accuracy_of_change"] == 0.5
        assert last["accuracy_of_change"] > 0.5
    assert last["accuracy"] == last["accuracy_per_token"]


def test_folders_are_looked_at_before_the_first_run(run_of: Callable[..., Run], tmp_path: Path) -> None:
    runs = combinations(tree_of(run_of(optim__epochs=1)), ["seed=0,1"])
    (tmp_path / "s" / "seed=1").mkdir(parents=True)
    (tmp_path / "s" / "seed=1" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        train_all(runs, tmp_path / "s")
    assert not (tmp_path / "s" / "seed=0").exists()


def test_a_signal_that_came_too_late_for_a_run_ends_the_sweep(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = run_train.finish
    monkeypatch.setattr(run_train, "finish", lambda *args: (right(*args), os.kill(os.getpid(), signal.SIGINT)))
    runs = combinations(tree_of(run_of(optim__epochs=1)), ["seed=0,1"])
    with pytest.raises(UserError, match="stopped by SIGINT") as raised:
        train_all(runs, tmp_path / "s")
    assert raised.value.code == 75
    assert (tmp_path / "s" / "seed=0" / "report.html").exists()
    assert not (tmp_path / "s" / "seed=1").exists()


def test_accuracy_of_change_of_ratings_is_of_the_change(run_of: Callable[..., Run], tmp_path: Path) -> None:
    """Also where the reference is another model than the one that training began from."""
    save_model(tmp_path / "other", seed=5)
    rows = {"data__train": ratings(tmp_path / "t.jsonl"), "data__evaluate": ratings(tmp_path / "h.jsonl", 1)}
    reference = {"reference__path": str(tmp_path / "other")}
    out = train(run_of(objective__name="kto", optim__epochs=3, **rows, **reference))
    first, *_, last = read_lines(out / "evaluations.jsonl")
    assert first["accuracy_of_change"] == 0.5
    assert first["accuracy"] != 0.5
    assert last["accuracy_of_change"] > 0.6
    rows = list(read_lines(out / "evaluation_rows.jsonl"))
    assert sum(row["accuracy_of_change"] for row in rows) / len(rows) == pytest.approx(last["accuracy_of_change"])


def ratings(path: Path, seed: int = 0) -> str:
    """As many good ones as bad ones: good ones end in a word of their own."""
    rng = random.Random(seed)
    rows = [{"prompt": f"w{rng.randrange(3, 40)}", "completion": f" w{rng.randrange(3, 40)} w{41 + n % 2}",
             "label": n % 2 == 0} for n in range(24)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_stopped_sweep_goes_on(run_of: Callable[..., Run], tmp_path: Path) -> None:
    runs = combinations(tree_of(run_of(optim__epochs=1)), ["objective.beta=0.1,0.2"])
    train(msgspec.structs.replace(runs[0].run, out=str(tmp_path / "s" / "objective.beta=0.1")))
    with pytest.raises(UserError, match="this folder holds a run already"):
        train_all(runs, tmp_path / "s")
    done = train_all(runs, tmp_path / "s", resume=True)
    assert [len(lines(path)) for path in done] == [7, 7]


def test_a_sweep_in_python_takes_rows_in_python(run_of: Callable[..., Run], tmp_path: Path, counted: list[Run]) -> None:
    run = run_of(optim__epochs=1)
    rows = [json.loads(line) for line in Path(str(run.data.train)).read_text().splitlines()]
    given = msgspec.structs.replace(run, data=msgspec.structs.replace(run.data, train=rows))
    done = sweep(given, {"objective.beta": [0.1, 0.3], "objective": ["dpo", "ipo"]}, tmp_path / "s")
    assert len(counted) == 1
    assert {path.name for path in done} == {
        "objective.beta=0.1,objective=dpo", "objective.beta=0.3,objective=dpo", "objective=ipo",
    }  # fmt: skip
    assert all("rows given in Python" in (path / "run.toml").read_text() for path in done)
    for key, values in {"data.train": ["a", "b"], "data": [{"train": "a"}], "out": ["a", "b"], "seed": []}.items():
        with pytest.raises(UserError, match=r"cannot be varied|names the folders|no value to take"):
            sweep(given, {key: values}, tmp_path / "t")

    def margins(pairs: Pairs) -> Tensor:
        return -pairs.margin

    margins.reads = {"reference"}  # type: ignore[attr-defined]
    own = msgspec.structs.replace(given, objective=margins)
    with pytest.raises(UserError, match="cannot be varied"):
        sweep(own, {"objective.beta": [0.1, 0.2]}, tmp_path / "t")
    assert len(sweep(own, {"seed": [1, 2]}, tmp_path / "own")) == 2


def test_values_of_a_sweep_are_what_they_are(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commas separate none, text that looks like a number is text, and a table adds to the run's."""
    made: list[Variant] = []
    monkeypatch.setattr(run_sweep, "train_all", lambda variants, *_, **__: made.extend(variants))
    run = run_of(optim__epochs=1)

    def variants(vary: dict[str, object]) -> list[Run]:
        made.clear()
        sweep(run, vary, tmp_path / "s")  # type: ignore[arg-type]
        return [variant.run for variant in made]

    names = ["a,b", " m", "m ", "1", "true", "none"]
    assert [each.model.path for each in variants({"model.path": names})] == names
    assert [each.optim.epochs for each in variants({"optim": [{"lr": 1e-3}, {"lr": 1e-4}]})] == [1, 1]
    assert [each.objective for each in variants({"objective": [DPO(beta=0.1), DPO(beta=0.3), "ipo"]})] == [
        DPO(beta=0.1), DPO(beta=0.3), IPO(),
    ]  # fmt: skip
    assert [each.seed for each in variants({"seed": np.arange(2)})] == [0, 1]
    assert [each.seed for each in variants({"seed": 3})] == [3]


def test_a_run_that_fails_ends_no_other(run_of: Callable[..., Run], tmp_path: Path) -> None:
    """The page names it with why, its code is the sweep's, and a resume takes it up again."""
    runs = combinations(tree_of(run_of(optim__epochs=1)), ["optim.weight_decay=1e39,0", "optim.lr=1e-3,1"])
    names = [run.folder for run in runs]
    for resume in (False, True):
        with pytest.raises(RunsFailed, match="2 of 4 runs failed; --resume takes them up again") as raised:
            train_all(runs, tmp_path / "s", resume=resume)
        assert raised.value.code == 3
        assert [path.name for path in raised.value.records] == names[2:]
        assert f"{names[0]}: 3 updates in a row were not finite" in str(raised.value)
        assert all((path / "report.html").exists() for path in raised.value.records)
        html = (tmp_path / "s" / "compare.html").read_text()
        failed = html.partition("<h2>Runs that failed</h2>")[2].partition("</section>")[0]
        assert f"<strong>{names[1]}</strong>: update 1 left weights that are not finite" in failed
        assert "2 runs side by side" in html
    with pytest.raises(UserError, match=r"1 of 1 runs failed") as raised:
        sweep(runs[0].run, {"optim.weight_decay": [1e39]}, tmp_path / "none")
    assert raised.value.records == []
    assert not (tmp_path / "none" / "compare.html").exists()


def test_what_is_no_fault_of_one_run_ends_the_sweep(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, begun = combinations(tree_of(run_of(optim__epochs=1)), ["seed=0,1"]), []

    def failing(error: Exception) -> None:
        def fail(run: Run, **_: object) -> None:
            begun.append(run)
            raise error

        monkeypatch.setattr(run_sweep, "train", fail)

    for error in (KeyError("a bug"), Stopped("SIGTERM"), PeerRankError("another")):
        failing(error)
        with pytest.raises(type(error)):
            train_all(runs, tmp_path / "s")
    assert len(begun) == 3
    failing(MemoryError())
    with pytest.raises(RunsFailed, match="memory ran out") as raised:
        train_all(runs, tmp_path / "s")
    assert (len(begun), raised.value.code) == (5, 74)


def test_ranks_agree_on_which_run_failed(run_of: Callable[..., Run], tmp_path: Path) -> None:
    runs = combinations(tree_of(run_of(optim__epochs=1)), ["optim.weight_decay=1e39,0"])

    def on_rank(_: object) -> list[str]:
        try:
            train_all(runs, tmp_path / "s")
        except RunsFailed as error:
            return [path.name for path in error.records]
        return []

    assert on_ranks(2, tmp_path / "on", on_rank) == [["optim.weight_decay=0"]] * 2

"""What a command writes where: over no input, over nobody's file; and a run's folder stands for its model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import save_model, save_pairs

from preftune.demo import stages
from preftune.errors import UserError

SCORE = ("score", "m", "p.jsonl", "objective=nll")
DRAW = ("draw", "m", "p.jsonl", "-k", "1", "--max-tokens", "4")


@pytest.fixture
def run(tmp_path: Path, command):
    """`command` where there are m/, p.jsonl and the finished run r/."""
    save_model(tmp_path / "m")
    save_pairs(tmp_path / "p.jsonl", 12)
    code, output = command("train", "model.path=m", "data.train=p.jsonl", "optim.steps=1", "out=r")
    assert code == 0, output
    return command


def all_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and "store" not in path.parts)
    return {str(path): path.read_bytes() for path in files}


def test_no_input_and_nobodys_file_is_replaced(run, tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_text("mine\n")
    (tmp_path / "compare.html").write_text("mine\n")
    (tmp_path / "results.json").write_text('{"mine": 1}')
    before = all_of(tmp_path)
    for words, message in (
        ((*SCORE, "--out", "p.jsonl"), "this is an input of this command"),
        ((*SCORE, "--out", "m/scores.jsonl"), "this lies in m, an input"),
        (SCORE, "scores.jsonl: this file is there already"),
        (("score", "--reward", "m", "p.jsonl", "--out", "m/config.json"), "lies in m"),
        ((*DRAW, "--out", "p.jsonl"), "this is an input of this command"),
        ((*DRAW, "--out", "r/model/config.json"), "preftune draw has not written it"),
        ((*DRAW, "--out", "./m/new"), "this lies in m, an input"),
        (("report", "r", "--out", "p.jsonl"), "preftune report has not written it"),
        (("report", "r", "r"), "compare.html: this file is there already"),
        (("trade-off", "--out", "."), "preftune trade-off has not written it"),
    ):
        code, output = run(*words)
        assert code == 2, output
        assert message in output
    assert all_of(tmp_path) == before


def test_what_a_command_wrote_before_it_writes_again(run) -> None:
    Path("scores.jsonl").touch()
    for words in (SCORE, (*DRAW, "--out", "d.jsonl"), ("report", "r"), ("report", "r", "r", "--out", "c.html")):
        for _ in range(2):
            code, output = run(*words)
            assert code == 0, output
    assert json.loads(Path("scores.jsonl").read_text().splitlines()[0])["place"] == "p.jsonl:1"
    code, output = run("score", "m", "d.jsonl", "objective=nll", "--out", "d.jsonl")
    assert (code, "an input of this command" in output) == (2, True)


def test_a_runs_folder_is_its_model(run) -> None:
    for words in (("draw", "r", *DRAW[2:]), ("score", "r", "p.jsonl"), ("draw", "r/", *DRAW[2:])):
        code, output = run(*words)
        assert code == 0, output
    for words in (
        ("train", "model.path=r", "data.train=p.jsonl"),
        ("check", "model.path=r", "data.train=p.jsonl"),
        ("train", "model.path=m", "reference.path=r", "data.train=p.jsonl"),
        ("train", "model.path=m", "adapter.path=r", "data.train=p.jsonl"),
        ("score", "model.path=r", "data.train=p.jsonl"),
    ):
        code, output = run(*words)
        assert code == 2
        assert "path: r: is the folder of a run, and no model. Name the model that it has tuned: r/model" in output


def test_an_export_begins_no_folder_in_what_it_reads(run) -> None:
    code, output = run("train", "model.path=m", "data.train=p.jsonl", "optim.steps=1", "adapter.rank=2", "out=a")
    assert code == 0, output
    for into, message in {"a/model/merged": "lies in a/model", "m/merged": "lies in", "m": "not empty",
                          "p.jsonl": "not empty"}.items():  # fmt: skip
        code, output = run("export", "a", into)
        assert (code, message in output) == (2, True), output
    assert run("export", "a", "merged")[0] == 0


def test_a_demo_takes_no_folder_with_a_run_file_of_another(tmp_path: Path) -> None:
    (tmp_path / "dpo.toml").write_text('out = "dpo"\n[model]\npath = "my-model"\n[data]\ntrain = "pairs.jsonl"\n')
    (tmp_path / "pairs.jsonl").write_text("mine")
    for _ in range(2):
        with pytest.raises(UserError, match="the folder holds other files"):
            stages.make(tmp_path, 0)
        (tmp_path / "dpo.toml").write_text("[")
    assert (tmp_path / "pairs.jsonl").read_text() == "mine"
    for _ in range(2):
        stages.make(tmp_path / "new", 0)


def test_the_folder_of_a_sweep_is_named_as_that_of_a_run(run) -> None:
    words = ("sweep", "model.path=m", "data.train=p.jsonl", "optim.steps=1", "evaluate.samples=0", "seed=0,1")
    code, output = run(*words, "out=runs/sweep")
    assert code == 0, output
    assert Path("runs/sweep/compare.html").exists()
    assert run(*words, "out=runs/sweep", "--out", "runs/sweep", "--resume")[0] == 0
    for more in (("out=a", "--out", "b"), ("out=a", "out=b"), ("out=a,b",)):
        code, output = run(*words, *more)
        assert (code, "out: a and b are named. Name the one folder" in output) == (2, True), output
    code, output = run(*words[:4], "optim.weight_decay=0,1e39", "optim.lr=1", "out=f")
    assert code == 3
    assert "f/compare.html" in output
    assert "1 of 2 runs failed; --resume takes them up again." in output

"""Slips of the keyboard: each one gives one sentence and the right exit code, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROWS = '{"prompt": "a ", "chosen": "b", "rejected": "c"}\n{"prompt": "d ", "chosen": "e", "rejected": "f"}\n'


@pytest.fixture
def run(tmp_path: Path, command):
    """`command` where there is rows.jsonl."""
    (tmp_path / "rows.jsonl").write_text(ROWS)
    return command


SLIPS = {
    "check objective=dop": 'objective.name: "dop" is not one of them. Did you mean "dpo"?',
    "check nosuch.toml": "nosuch.toml: there is no such file.",
    "check data.train=row.jsonl": 'Did you mean "rows.jsonl"?',
    "check model=M": "model: must be a table, got text. Write model.path",
    "check": "data.train: no rows are named.",
    "check track.project=x": "track: Object missing required field",
    "check track.to=wandbb": '"wandbb" is not one of them. Did you mean "wandb"?',
    "check rows.jsonl extra": '"extra" is neither a flag nor key=value.',
    "keys objectve": 'no key begins with "objectve". Did you mean "objective',
    "score --out .": "--out .: this is a folder. Name a file.",
    "sweep out=a,b": "a sweep names the folders of its runs itself. Use --out",
    "train data.train=rows.jsonl": "model.path: no model is named. Write model.path=my-model, or path =",
    "check data.train=a.jsonl,b.jsonl": """Several files are a list: data.train='["a.jsonl", "b.jsonl"]'.""",
    "report nosuch": "nosuch: not the record of a run",
}


@pytest.mark.parametrize("line", SLIPS)
def test_a_slip_is_one_sentence(line: str, run) -> None:
    code, output = run(*line.split())
    assert code == 2
    assert SLIPS[line] in output
    assert "Traceback" not in output


def test_nothing_in_the_data_commands_the_terminal(run) -> None:
    nasty = {"prompt": "\x1b]0;x\x07\u202e [bold]m[/bold] [/]", "chosen": "\x9b31m \x00\r\x08", "rejected": "c"}
    nasty["\x1bextra"] = "d"
    Path("rows.jsonl").write_text(json.dumps(nasty) + "\n")
    code, output = run("check", "data.train=rows.jsonl")
    assert code == 0
    assert [c for c in output if not c.isprintable() and c != "\n"] == []
    for shown in (r"\x1b]0;x\x07\u202e [bold]m[/bold] [/]", r"\x9b31m \x00\r\x08", "1 rows read, 1 usable"):
        assert shown in output


def test_a_schema_that_accepts_runs_and_refuses_others(run) -> None:
    code, output = run("keys", "--as", "schema")
    schema = json.loads(output)
    assert code == 0
    import jsonschema

    validator = jsonschema.Draft202012Validator
    validator.check_schema(schema)
    good = {"model": {"path": "m"}, "objective": {"name": "dpo", "beta": 0.2}, "optim": {"betas": [0.9, 0.99]}}
    assert validator(schema).is_valid(good)
    for bad in ({"modl": {}}, {"optim": {"lr": -1}}, {"objective": {"name": "dpo", "tau": 1}}):
        assert not validator(schema).is_valid(bad)

"""Slips of the keyboard: each one gives one sentence and the right exit code, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.config.explain import schema

ROWS = '{"prompt": "a ", "chosen": "b", "rejected": "c"}\n{"prompt": "d ", "chosen": "e", "rejected": "f"}\n'


@pytest.fixture
def run(tmp_path: Path, command):
    """`command` where there is rows.jsonl."""
    (tmp_path / "rows.jsonl").write_text(ROWS)
    return command


SLIPS = {
    "check objective=dop": 'objective.name: "dop" is not one of them. Did you mean "dpo"?',
    "check data.train=row.jsonl": 'Did you mean "rows.jsonl"?',
    "check": "data.train: no rows are named.",
    "check track.project=x": "track: Object missing required field",
    "check track.to=wandbb": '"wandbb" is not one of them. Did you mean "wandb"?',
    "check rows.jsonl extra": '"extra" is neither a flag nor key=value.',
    "keys objectve": 'no key begins with "objectve". Did you mean "objective',
    "score --out .": "--out .: this is a folder. Name a file.",
    "sweep out=a,b": "a and b are named. Name the one folder that is to hold all runs",
    "train data.train=rows.jsonl": "model.path: no model is named. Write model.path=my-model, or path =",
    "check data.train=a.jsonl,b.jsonl": """Several files are a list: data.train='["a.jsonl", "b.jsonl"]'.""",
    "train --data.train rows.jsonl": "Unknown option: --data.train. Write data.train=VALUE: keys have no dashes.",
    "train --beta 1": "Unknown option: --beta. Here it is objective.beta.",
    "train --forse": "Unknown option: --forse. Did you mean --force?",
    "demo out=x": "demo takes no out=x. Options have dashes here: --out x. See `preftune demo --help`.",
    "demo x y": "demo takes no x and no y. See",
    "draw a b optim.lr=1": "draw takes no optim.lr=1. See `preftune draw --help`.",
    "draw a b --optim.lr 1": "Unknown option: --optim.lr. See `preftune draw --help`.",
    "export a": "export needs INTO. See `preftune export --help`.",
    "demo --sed 3": "Unknown option: --sed. Did you mean --seed?\n",
    "score out=x rows.jsonl": "out=x would be the folder of a run. Name the file to write by --out.",
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


NASTY = "\x1b]0;x\x07\u202eextra\npreftune: finished"


def test_a_name_in_the_data_is_no_line_of_ours(run) -> None:
    """In notes and errors alike."""
    rows = [{"prompt": "a ", "chosen": "b", "rejected": "c", NASTY: "d", "id": NASTY}]
    bad = [{"prompt": "a ", "chosen": "b", "rejected": "c", NASTY: 1}, {NASTY: "x"}, {"prompt": NASTY, "chosen": 3}]
    for number, some in enumerate((rows, rows + bad, bad[1:], [*rows, {"prompt": "a ", "chosen": "b", NASTY: "c"}])):
        Path(f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        for words in (["check"], ["check", f"data.columns.prompt={NASTY}"]):
            code, output = run(*words, f"data.train={number}.jsonl")
            assert code in (0, 2)
            assert [c for c in output if not c.isprintable() and c != "\n"] == []
            assert not any(line.startswith("preftune: finished") for line in output.splitlines())


@pytest.mark.parametrize(
    "word", ["out=a\0b", "data.train=" + "[" * 500 + "]" * 500, "data.columns=" + '{"a":' * 500 + "1" + "}" * 500]
)
def test_a_word_that_no_run_holds_is_one_sentence(word: str, run) -> None:
    code, output = run("check", "data.train=rows.jsonl", word)
    assert code == 2
    assert output.count("\n") == 1


def test_the_schema_is_one(run) -> None:
    import jsonschema

    code, output = run("keys", "--as", "schema")
    assert code == 0
    assert json.loads(output)["$defs"].keys() == schema()["$defs"].keys()
    jsonschema.Draft202012Validator.check_schema(json.loads(output))

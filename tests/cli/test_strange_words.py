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


UNHEARD = {
    "a key twice in JSON": ("r.json", '{"seed": 1, "seed": 2}', 'the key "seed" stands there twice'),
    "a key twice in a table": ("r.json", '{"optim": {"lr": 1e-6, "lr": 1e-5}}', 'the key "lr" stands there twice'),
    "a key twice in YAML": ("r.yaml", "seed: 1\nseed: 2\n", 'the key "seed" stands there twice'),
    "a key twice deep in YAML": ("r.yaml", "optim: {lr: 1.0, lr: 2.0}\n", 'the key "lr" stands there twice'),
    "a number to the base of 60": ("r.yaml", "seed: 1:20\n", "seed: must be a whole number, got text"),
    "a fraction to the base of 60": ("r.yaml", "optim: {lr: 1:20.5}\n", "optim.lr: must be a number, got text"),
    "no YAML, over lines": ("r.yaml", "a: [\n\x1b: x\n", "is not valid YAML"),
    "a zero character": ("r.json", '{"data": {"train": "a\\u0000b"}}', "data.train: holds a zero character"),
    "half a character": ("r.json", '{"out": "\\ud800"}', "out: holds a zero character or half of one"),
    "half a character in a list": ("r.json", '{"data": {"train": ["\\udfff"]}}', "data.train: holds a zero character"),
    "a list 900 deep": ("r.json", '{"data": ' + "[" * 900 + "]" * 900 + "}", "data: values are nested too deeply"),
    "tables 900 deep": ("r.json", '{"a": ' * 900 + "1" + "}" * 900, "a: values are nested too deeply"),
    "JSON 100,000 deep": ("r.json", "[" * 100_000, "is not valid JSON"),
    "YAML 900 deep": ("r.yaml", "a: " + "[" * 900 + "]" * 900, "r.yaml"),
    "TOML 900 deep": ("r.toml", "a = " + "[" * 900 + "]" * 900, "r.toml"),
}


@pytest.mark.parametrize("case", UNHEARD)
def test_no_configuration_is_half_read(case: str, run) -> None:
    name, text, sentence = UNHEARD[case]
    Path(name).write_text(text)
    code, output = run("check", name)
    assert code == 2
    assert sentence in output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    "word", ["out=a\0b", "data.train=" + "[" * 500 + "]" * 500, "data.columns=" + '{"a":' * 500 + "1" + "}" * 500]
)
def test_a_word_that_no_run_holds_is_one_sentence(word: str, run) -> None:
    code, output = run("check", "data.train=rows.jsonl", word)
    assert code == 2
    assert output.count("\n") == 1


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

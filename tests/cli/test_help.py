"""What help says, and how a command ends when its reader has gone or Ctrl-C comes early."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from preftune import __main__ as program
from preftune.cli.app import ALONE, VERBS, call
from preftune.errors import INTERRUPTED


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_of_verbs_says_what_each_says_itself(verb: str) -> None:
    name = verb.replace("-", "_")
    module = importlib.import_module(f"preftune.cli.{name if name in ALONE else 'verbs'}")
    function = getattr(module, name)
    assert VERBS[verb] == function.__doc__.split("\n")[0]


def helped(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        call([*words, "--help"])
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_help_lists_every_verb_with_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = helped([], monkeypatch, capsys)
    assert [verb for verb, line in VERBS.items() if f" {verb} {line}" not in text] == []


def test_help_of_a_verb_has_whole_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        call(["check", "--help"])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "preftune check run.toml [key=value ...]" in lines
    assert "Without model.path, it reads and counts rows; with it, it also tokenizes them," in lines


@pytest.mark.parametrize("words", [["keys"], ["keys", "--as", "schema"], ["--help"]])
def test_a_reader_that_closes_the_pipe_is_no_failure(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        command = [sys.executable, "-m", "preftune", *words]
        process = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (process.returncode, process.stderr) == (0, b"")


def test_ctrl_c_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "_run_verb", interrupt)
    with pytest.raises(SystemExit) as exited:
        program.main()
    assert exited.value.code == INTERRUPTED == 130

"""A command as a person types it, in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from preftune.__main__ import main

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the words of a command: its exit code, and all that it wrote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFTUNE_STORE", str(tmp_path / "store"))

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["preftune", *words])
        code = 0
        try:
            main()
        except SystemExit as exited:
            code = int(exited.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run

"""A command as somebody types it, in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from preftune.__main__ import main

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """(exit code, all that was written) of the words of a command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFTUNE_STORE", str(tmp_path / "store"))

    def go(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["preftune", *words])
        code = 0
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
        told = capsys.readouterr()
        return code, told.out + told.err

    return go

"""Who may write into a folder: never over another's files, never over a run unless told so."""

from __future__ import annotations

from pathlib import Path

import pytest

from preftune.errors import UserError
from preftune.record.writer import claim


def begun(path: Path) -> Path:
    for name in ("identity.json", "run.toml", "metrics.jsonl"):
        (path / name).write_text("{}")
    return path


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1")
    assert not claim(tmp_path, resume=False, force=False)
    assert not claim(tmp_path, resume=True, force=False)


def test_what_a_kill_before_the_first_step_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / ".tmp-17-identity.json").touch()
    assert not claim(tmp_path, resume=False, force=False)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["run.toml", "thesis.tex", "model"])
def test_a_file_of_another_is_never_touched(name: str, resume: bool, force: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / ".tmp-mine").write_text("mine")
    with pytest.raises(UserError, match=rf"holds other files \({name}\)"):
        claim(tmp_path, resume=resume, force=force)
    assert (tmp_path / name).read_text() == (tmp_path / ".tmp-mine").read_text() == "mine"


def test_a_run_is_resumed_or_replaced_only_when_told(tmp_path: Path) -> None:
    (begun(tmp_path) / "notes.txt").write_text("mine")
    (tmp_path / "checkpoints" / ".tmp-17-step-2").mkdir(parents=True)
    with pytest.raises(UserError, match="this folder holds a run already"):
        claim(tmp_path, resume=False, force=False)
    assert claim(tmp_path, resume=True, force=False)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert not claim(tmp_path, resume=False, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_damaged_identity_is_said(tmp_path: Path) -> None:
    (begun(tmp_path) / "identity.json").write_text("{")
    with pytest.raises(UserError, match=r"identity\.json: this file is damaged") as raised:
        claim(tmp_path, resume=True, force=False)
    assert raised.value.code == 65

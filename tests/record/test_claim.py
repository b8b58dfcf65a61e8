"""Who may write into a folder: never over another's files, never over a run unless told so."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from killed import Killed, build, contents, killed_at

from preftune.errors import UserError
from preftune.record.replace import RUN_FILES, bytes_aside, replacing
from preftune.record.writer import assert_sweep_writable, assert_writable, claim

LEFTOVER = ".preftune-0123456789abcdef.tmp"


def begun(path: Path) -> Path:
    """A run's folder with a file of each kind."""
    path.mkdir(exist_ok=True)
    (path / "identity.json").write_text('{"batch.tokens": 100}')
    for name in RUN_FILES:
        if "." in name:
            (path / name).write_text("{}")
    build(path / "model", a="weights")
    build(path / "checkpoints" / "step-00000001", **{"state.json": "{}"})
    return path


def replace(path: Path) -> None:
    """What `train --force` does once nothing refuses the new run any more."""
    assert not claim(path, resume=False, force=True)
    with replacing(path):
        (path / "identity.json").write_text('{"batch.tokens": 7}')
        (path / "run.toml").write_text("new")


NEW = {"identity.json": '{"batch.tokens": 7}', "run.toml": "new"}


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1")
    assert not claim(tmp_path, resume=False, force=False)
    assert not claim(tmp_path, resume=True, force=False)


def test_what_a_kill_before_the_first_file_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / LEFTOVER).touch()
    assert not claim(tmp_path, resume=False, force=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    for keys in ({}, {"resume": True}, {"force": True}):
        with pytest.raises(UserError, match="this is a file, and a folder is needed"):
            assert_writable(tmp_path / "run", **keys)
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["run.toml", "thesis.tex", "model", "metrics.jsonl", ".tmp-1-mine"])
def test_a_file_of_another_is_never_touched(name: str, resume: bool, force: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"holds other files \({name}\)"):
        claim(tmp_path, resume=resume, force=force)
    assert (tmp_path / name).read_text() == "mine"


def test_a_run_is_resumed_or_replaced_only_when_told(tmp_path: Path) -> None:
    (begun(tmp_path) / "notes.txt").write_text("mine")
    (tmp_path / ".tmp-1-mine").write_text("mine")
    (tmp_path / "checkpoints" / LEFTOVER).mkdir()
    with pytest.raises(UserError, match="this folder holds a run already"):
        claim(tmp_path, resume=False, force=False)
    assert claim(tmp_path, resume=True, force=False)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    replace(tmp_path)
    assert contents(tmp_path) == {"notes.txt": "mine", ".tmp-1-mine": "mine", **NEW}


def test_what_refuses_the_new_run_leaves_the_old_one(tmp_path: Path) -> None:
    """Before its record begins, when nothing has moved, and after: then all is put back."""
    path = begun(tmp_path / "run")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert not claim(path, resume=False, force=True)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before

    def refused() -> None:
        with replacing(path):
            assert not (path / "model").exists()
            assert bytes_aside(path) > sum(map(len, before.values()))
            (path / "identity.json").write_text("new")
            (path / "model").mkdir()
            raise UserError("a checkpoint takes more than is free here")

    with pytest.raises(UserError, match="a checkpoint takes more"):
        refused()
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    "name", ["model/README.md", "model/a", "model/gguf/q4", "checkpoints/notes", "checkpoints/step-00000001/mine"]
)
def test_force_names_files_of_another_among_those_of_the_run_and_deletes_nothing(name: str, tmp_path: Path) -> None:
    file = begun(tmp_path) / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"{name}: this file is not the run's"):
        claim(tmp_path, resume=False, force=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", ["model", "checkpoints"])
def test_force_does_not_delete_what_another_put_in_the_place_of_a_folder(name: str, tmp_path: Path) -> None:
    (begun(tmp_path) / name).rename(tmp_path / "elsewhere")
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{name}: this file is not the run's"):
        claim(tmp_path, resume=False, force=True)


def test_a_kill_at_any_call_of_force_leaves_what_force_takes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing between the two runs: what goes on is the old run, whole, or the new one."""
    old = {str(file.relative_to(tmp_path / "old")): file.read_text() for file in begun(tmp_path / "old").rglob("*.*")}
    call, whole = 0, False
    while not whole:
        call += 1
        path = begun(tmp_path / f"{call}")
        (path / "notes.txt").write_text("mine")
        names = {p.name for p in path.iterdir()}
        with killed_at(call, monkeypatch):
            try:
                replace(path)
                whole = True
            except Killed:
                pass
        assert (path / "run.toml").exists()  # a command may name the folder as its configuration
        with pytest.raises(UserError, match="holds a run already"):
            claim(path, resume=False, force=False)
        with monkeypatch.context() as patch, killed_at(call % 7 + 1, patch), suppress(Killed):
            claim(path, resume=True, force=False)  # which may be killed too
        assert claim(path, resume=True, force=False)
        if (path / "model").exists():
            assert {p.name for p in path.iterdir()} == names
            assert all((path / name).read_text() == text for name, text in old.items())
        else:
            assert contents(path) == {"notes.txt": "mine", **NEW}
        replace(path)
        assert contents(path) == {"notes.txt": "mine", **NEW}
    assert call > 60


@pytest.mark.parametrize("text", ["{", "[]", "{}", "3", "null", '{"batch.tokens": "x"}', "[" * 100_000])
def test_a_damaged_identity_is_reported(text: str, tmp_path: Path) -> None:
    (begun(tmp_path) / "identity.json").write_text(text)
    with pytest.raises(UserError, match=r"identity\.json: this file is damaged") as raised:
        claim(tmp_path, resume=True, force=False)
    assert raised.value.code == 65


def test_a_sweep_writes_over_no_page_of_another(tmp_path: Path) -> None:
    (tmp_path / "compare.html").write_text("mine")
    for resume in (False, True):
        with pytest.raises(UserError, match=r"there is a compare\.html here already"):
            assert_sweep_writable(tmp_path, [tmp_path / "run"], resume=resume)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "identity.json").write_text(json.dumps({}))
    assert_sweep_writable(tmp_path, [tmp_path / "run"], resume=True)


def test_a_second_sweep_does_not_mix_with_the_first(tmp_path: Path) -> None:
    for name in ("beta=0.1", "beta=0.2"):
        begun(tmp_path / name)
    (tmp_path / "compare.html").write_text("ours")
    folders = [tmp_path / "beta=0.3", tmp_path / "beta=0.4"]
    with pytest.raises(UserError, match=r"another sweep is here already \(beta=0\.1\)\. Go on with --resume"):
        assert_sweep_writable(tmp_path, folders, resume=False)
    assert_sweep_writable(tmp_path, [tmp_path / "beta=0.2", *folders], resume=True)
    assert not folders[0].exists()

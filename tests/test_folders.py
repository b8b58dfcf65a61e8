"""A folder is whole or absent, its damage is noticed, and what it does not list is another's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from killed import Killed, build, contents, killed_at

from preftune import files, folders
from preftune.errors import UserError


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "step-1"
    with pytest.raises(ZeroDivisionError), folders.folder(path) as folder:
        folder.write("a", "x" * (1 // 0))
    assert list(tmp_path.iterdir()) == []
    with folders.folder(path) as folder:
        folder.json("a.json", {"x": 1})
    assert folders.verify(path) == ""


DAMAGES = ["flip", "cut", "delete", "manifest", "outside", "empty name", "format", "no format", "link", "deep"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    path = build(tmp_path / "step-1", a="some bytes")
    target, listing = path / "a", path / folders.MANIFEST
    manifest = json.loads(listing.read_text())
    if damage in ("flip", "cut"):
        target.write_bytes({"flip": b"somE bytes", "cut": b"some"}[damage])
    elif damage == "delete":
        target.unlink()
    elif damage == "manifest":
        listing.write_text("{")
    elif damage == "deep":
        listing.write_text("[" * 100_000)
    elif damage == "link":
        target.rename(tmp_path / "a")
        target.symlink_to(tmp_path / "a")
    else:
        entry = {"bytes": 1, "sha256": ""}
        more = {"outside": {"../../etc/passwd": entry}, "empty name": {"": entry}}.get(damage, {})
        form = {"format": {"format": 99}, "no format": {"format": None}}.get(damage, {})
        listing.write_text(json.dumps({**manifest, "files": {**manifest["files"], **more}, **form}))
    assert folders.verify(path)


def test_a_folder_behind_a_link_is_not_trusted(tmp_path: Path) -> None:
    build(tmp_path / "a", a="text")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert folders.verify(tmp_path / "b") == "this is a link"


def test_what_is_replaced_is_what_was_written_before(tmp_path: Path) -> None:
    path = build(tmp_path / "model", a="1", b="1")
    (path / "README.md").write_text("mine")
    assert folders.not_ours(path) == ["README.md"]
    build(path, a="2", c="2")
    assert contents(path) == {"a": "2", "c": "2", "README.md": "mine"}
    assert folders.verify(path) == ""


@pytest.mark.parametrize("name", ["a", "c"])
def test_a_file_that_another_put_there_or_changed_is_not_overwritten(name: str, tmp_path: Path) -> None:
    path = build(tmp_path / "model", a="1", b="1")
    (path / name).write_text("mine")
    before = contents(path)
    with pytest.raises(UserError, match=f"model/{name}: another has put this file there or changed it"):
        build(path, a="2", b="2", c="2")
    assert contents(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    build(path, re.compile(re.escape(name)), a="2", b="2", c="2")
    assert contents(path) == {"a": "2", "b": "2", "c": "2"}


def test_a_kill_while_files_are_replaced_loses_none_of_another_and_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, whole = 0, False
    while not whole:
        call += 1
        path = build(tmp_path / f"{call}", a="1", b="1")
        (path / "mine").write_text("mine")
        with killed_at(call, monkeypatch):
            try:
                build(path, a="2", c="2")
                whole = True
            except Killed:
                pass
        assert contents(path)["mine"] == "mine"
        assert folders.verify(path) or contents(path).get("a") in ("1", "2")
        build(path, a="3", c="3")
        assert contents(path) == {"a": "3", "c": "3", "mine": "mine"}
        assert folders.verify(path) == ""
        assert not folders.lacks_files(path)
        files.sweep_leftovers(tmp_path)
    assert call > 10

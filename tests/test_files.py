"""Files appear whole or not at all, and what is damaged is noticed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from preftune import files
from preftune.errors import IO, UserError


def test_write_replaces_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    files.write(path, "one")
    files.write(path, b"two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    files.write(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left") as raised:
        files.write(path, "new")
    assert raised.value.code == IO
    assert "MiB are free" in str(raised.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_every_byte_of_a_write_reaches_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("sync"), sync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (calls.append("rename"), rename(self, to))[1])
    files.write(tmp_path / "a", "x")
    assert calls == ["sync", "rename", "sync"]


def test_lines_survive_a_torn_end_and_keep_non_finite_numbers(tmp_path: Path) -> None:
    lines = files.Lines(tmp_path / "m.jsonl")
    lines.append({"step": 1, "loss": float("nan"), "more": [float("inf")]})
    lines.append({"step": 2, "loss": 0.5})
    lines.sync()
    lines.close()
    with (tmp_path / "m.jsonl").open("ab") as stream:
        stream.write(b'{"step": 3, "lo')
    read = files.read_lines(tmp_path / "m.jsonl")
    assert read == [{"step": 1, "loss": "NaN", "more": ["Infinity"]}, {"step": 2, "loss": 0.5}]


def test_a_torn_end_is_dropped_when_lines_go_on(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"a": 1}\n{"a"')
    lines = files.Lines(tmp_path / "m.jsonl")
    lines.append({"a": 2})
    lines.close()
    assert files.read_lines(tmp_path / "m.jsonl") == [{"a": 1}, {"a": 2}]


def test_a_disk_that_takes_half_a_line_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Full:
        left = 5

        def write(self, data: bytes) -> int:
            if not self.left:
                raise OSError(28, "No space left on device")
            took, self.left = min(self.left, len(data)), 0
            return took

    lines = files.Lines(tmp_path / "m.jsonl")
    lines.close()
    monkeypatch.setattr(lines, "_stream", Full())
    with pytest.raises(UserError, match="No space left on device"):
        lines.append({"a": 1})


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    with pytest.raises(UserError, match=r"m\.jsonl:2"):
        files.read_lines(tmp_path / "m.jsonl")


def test_the_lock_is_held_by_one_and_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    with files.lock(path), pytest.raises(UserError, match=str(os.getpid())), files.lock(path):
        pass
    held = f"from preftune import files; import pathlib, os\nwith files.lock(pathlib.Path({str(path)!r})): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", held], check=False).returncode == 9
    with files.lock(path):
        pass


def test_leftovers_of_a_killed_process_are_swept_and_files_of_others_are_not(tmp_path: Path) -> None:
    for name in (".preftune-0123456789abcdef.tmp", ".preftune-fedcba9876543210.trash"):
        (tmp_path / name).mkdir()
    kept = {"mine", ".tmp-1-mine", ".preftune-notes", ".preftune-0123456789abcdef.tmp.txt"}
    for name in (".preftune-00112233445566aa.tmp", *kept):
        (tmp_path / name).write_text("")
    files.sweep_leftovers(tmp_path, older_than=3600)
    assert len(list(tmp_path.iterdir())) == 7
    files.sweep_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == kept
    files.sweep_leftovers(tmp_path / "not there")


def test_writers_need_no_process_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two containers may have one process id, and a reader never sees what is half written."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    seen, replace = [], Path.replace

    def while_the_other_writes(self: Path, target: Path) -> Path:
        if not seen:
            seen.append([*tmp_path.glob("*.safetensors")])
            files.write(tmp_path / "a.safetensors", "same")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", while_the_other_writes)
    files.write(tmp_path / "a.safetensors", "same")
    assert seen == [[]]
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_name_as_long_as_the_disk_takes_is_written(tmp_path: Path) -> None:
    files.write(tmp_path / ("n" * 255), "x")
    assert [p.name for p in tmp_path.iterdir()] == ["n" * 255]


def test_a_new_folder_is_on_the_disk_before_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, opened = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: (synced.append(Path(path)), opened(path, *rest))[1])
    files.write(tmp_path / "a" / "b" / "c.txt", "x")
    assert synced[:2] == [tmp_path, tmp_path / "a"]


@pytest.mark.parametrize("call", ["ftruncate", "write"])
def test_a_disk_that_refuses_the_lock_is_one_sentence(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match="cannot lock: No space left") as raised, files.lock(tmp_path / ".lock"):
        pass
    assert raised.value.code == IO


def test_a_lock_in_what_is_no_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / ".lock", tmp_path / "file" / "below" / ".lock"):
        with pytest.raises(UserError, match="this is a file, and a folder is needed"), files.lock(path):
            pass

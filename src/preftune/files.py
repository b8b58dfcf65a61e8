"""Everything that preftune writes goes through here, and appears whole or not at all, even after a loss of power.

A file is written under a random temporary name, flushed to the disk and renamed; then its folder is flushed. Whole
folders are built in folders.py.
Held by tests/test_files.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from preftune.errors import CORRUPT, UserError
from preftune.errors import IO as IO_CODE

LEFTOVER = re.compile(r"\.preftune-[0-9a-f]{16}\.(tmp|trash)")


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def reported(path: Path, action: str = "write") -> Iterator[None]:
    """Turn a failure of the file system into a UserError with the path."""
    try:
        yield
    except Exception as error:
        # safetensors raises a class of its own, for instance on a full disk
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        reason, hint = getattr(error, "strerror", None) or str(error), ""
        if getattr(error, "errno", None) in (None, errno.ENOSPC, errno.EDQUOT):  # that class has no number
            with contextlib.suppress(OSError):
                hint = f"{free(path) / 2**20:.0f} MiB are free there."
        raise UserError(f"cannot {action}: {reason}.", location=str(path), hint=hint, code=IO_CODE) from error


def free(path: Path) -> int:
    """Bytes that are free where a path is, or would be."""
    return shutil.disk_usage(next(p for p in [path, *path.parents] if p.exists())).free


def temporary_name(path: Path, kind: str = "tmp") -> Path:
    """A name beside `path` that no other process has, and that no pattern of readers matches."""
    return path.with_name(f".preftune-{secrets.token_hex(8)}.{kind}")


def is_leftover(name: str) -> bool:
    """Whether a name is that of something half written or half deleted."""
    return LEFTOVER.fullmatch(name) is not None


def sync(path: Path) -> None:
    """Return when a file, or what was made, renamed and deleted in a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it that are missing, each of them on the disk before the next."""
    for path in reversed([path for path in (folder, *folder.parents) if not path.is_dir()]):
        path.mkdir(mode, exist_ok=True)
        with contextlib.suppress(PermissionError):  # a folder above may be one that cannot be listed
            sync(path.parent)


def usable(folder: Path, mode: int) -> None:
    """Make a folder, and raise UserError where nothing can be written in it: now, and not after hours of work."""
    with reported(folder):
        make(folder, mode)
        tempfile.TemporaryFile(dir=folder).close()


def write(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Write one file atomically. A missing folder is made."""
    data = content.encode() if isinstance(content, str) else content
    temporary = temporary_name(path)
    with reported(path):
        make(path.parent)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, mode), "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN) atomically."""
    write(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """The value with every float that JSON cannot hold as a word: "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return "NaN" if value != value else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


class Lines:
    """An append-only JSON-lines file. Each line goes to the system at once, and to the disk with `sync`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reported(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream: IO[bytes] = path.open("ab", buffering=0)
            self._stream.truncate(path.read_bytes().rfind(b"\n") + 1)  # half a line would spoil the next one

    def append(self, value: Mapping[str, object]) -> None:
        """Add one object as one line."""
        line = (json.dumps(plain(value), allow_nan=False, ensure_ascii=False) + "\n").encode()
        with reported(self.path):
            while line:  # a disk that fills up first takes a part, and then fails
                line = line[self._stream.write(line) :]

    def sync(self) -> None:
        """Return when all lines are on the disk."""
        with reported(self.path):
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a whole file of JSON lines atomically."""
    write(path, "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a JSON-lines file, without a last line that a crash cut off."""
    if not path.exists():
        return []
    values = []
    raw = path.read_bytes().split(b"\n")
    for number, line in enumerate(raw, 1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
        except ValueError as error:
            if number < len(raw):
                raise UserError("this line is not JSON.", location=f"{path}:{number}", code=CORRUPT) from error
    return values


def delete(path: Path) -> None:
    """Delete a file or a folder, if it is there; a crash leaves a folder whole under its name, or not at all."""
    with reported(path, "delete"):
        if path.is_dir() and not path.is_symlink():
            trash = temporary_name(path, "trash")
            path.rename(trash)
            shutil.rmtree(trash)
        else:
            path.unlink(missing_ok=True)


def move(path: Path, to: Path) -> None:
    """Give a file or a folder another name, on the disk when this returns. A file that has that name is replaced."""
    with reported(path, "move"):
        path.replace(to)
        for parent in {path.parent, to.parent}:
            sync(parent)


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or something below it, whatever links lead to either."""
    return path.expanduser().resolve().is_relative_to(folder.expanduser().resolve())


def sweep_leftovers(parent: Path, older_than: float = 0.0) -> None:
    """Delete what a killed process left half written or half deleted in `parent`.

    older_than: seconds since it was last changed. 0 is for those who hold the folder's lock.
    """
    for leftover in parent.glob(".preftune-*") if parent.is_dir() else ():
        with reported(leftover, "delete"), contextlib.suppress(FileNotFoundError):  # another one was faster
            if is_leftover(leftover.name) and time.time() - leftover.lstat().st_mtime >= older_than:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold `path` as a lock, which ends with the process. Raises UserError where another process holds it."""
    with reported(path, "lock"):
        try:
            make(path.parent)
        except (FileExistsError, NotADirectoryError):
            raise UserError("this is a file, and a folder is needed.", location=str(path.parent)) from None
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with reported(path, "lock"):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(handle, 100).decode(errors="replace").strip()
                hint = "Wait for it, stop it, or choose another `out`."
                text = f"another run is at work in this folder (process {holder})."
                raise UserError(text, location=str(path.parent), hint=hint) from None
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        os.close(handle)

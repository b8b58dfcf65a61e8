"""Everything that preftune writes goes through here, and appears whole or not at all, even after a loss of power.

A file is written under a temporary name, flushed to the disk and renamed; then its folder is flushed. A folder is
built under a temporary name, gets a manifest with the size and SHA-256 of every file, and is renamed.
Held by tests/test_files.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from preftune.errors import CORRUPT, UserError
from preftune.errors import IO as IO_CODE

MANIFEST = "manifest.json"


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
                parent = next(p for p in [path, *path.parents] if p.exists())
                hint = f"{shutil.disk_usage(parent).free / 2**20:.0f} MiB are free there."
        raise UserError(f"cannot {action}: {reason}.", location=str(path), hint=hint, code=IO_CODE) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def usable(folder: Path) -> None:
    """Make a folder, and raise UserError where nothing can be written in it: now, and not after hours of work."""
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def write(path: Path, content: str | bytes) -> None:
    """Write one file atomically. A missing folder is made."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


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


class Folder:
    """A folder being built under a temporary name; see `folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, content: str | bytes) -> None:
        with (self.path / name).open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)

    def json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def tensors(self, name: str, tensors: dict[str, Any]) -> None:
        """Write tensors as safetensors, in the order of their names."""
        from safetensors.torch import save_file

        save_file({key: tensors[key].contiguous() for key in sorted(tensors)}, self.path / name)


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Folder]:
    """Build a folder that appears at `path` whole, or not at all. It replaces a folder that is there.

    It gets a manifest with the size and hash of every file, which `verify` reads.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    with reported(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield Folder(temporary)
            entries = {}
            for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
                entries[str(file.relative_to(temporary))] = {"bytes": file.stat().st_size, "sha256": digest(file)}
            (temporary / MANIFEST).write_text(json.dumps({"format": 1, "files": entries}, indent=2) + "\n")
            for path_inside in [*temporary.rglob("*"), temporary]:
                _sync(path_inside)
            if path.exists():
                remove(path)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync(path.parent)


def verify(path: Path) -> str:
    """Why a folder written by `folder` cannot be trusted, or an empty string where it can."""
    try:
        for name, expected in json.loads((path / MANIFEST).read_text())["files"].items():
            file = path / name
            if Path(name).is_absolute() or ".." in Path(name).parts or file.is_symlink():
                return f"{name}: this is not a plain file of this folder"
            if not file.is_file():
                return f"{name}: missing"
            if file.stat().st_size != expected["bytes"] or digest(file) != expected["sha256"]:
                return f"{name}: differs from the manifest"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {type(error).__name__}"
    return ""


def remove(path: Path) -> None:
    """Delete a folder so that a crash leaves it whole under its name, or not at all."""
    trash = path.with_name(f".trash-{os.getpid()}-{path.name}")
    path.rename(trash)
    shutil.rmtree(trash)


def delete(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        remove(path)
    else:
        path.unlink(missing_ok=True)


def sweep_leftovers(parent: Path) -> None:
    """Delete what a killed process left half written or half deleted in `parent`. Call it under the lock."""
    for leftover in [*parent.glob(".tmp-[0-9]*-*"), *parent.glob(".trash-[0-9]*-*")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold `path` as a lock, which ends with the process. Raises UserError where another process holds it."""
    with reported(path, "lock"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError("this is a file, and a folder is needed.", location=str(path.parent)) from None
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
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

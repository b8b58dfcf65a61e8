"""Everything the product writes goes through here: whole or not at all, hashed, and on the disk before it counts.

A file is written beside its place under a temporary name, flushed to the disk, renamed, and its folder flushed.
A folder is built under a temporary name, given a manifest with the size and SHA-256 of every file, and renamed.
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
from collections.abc import Iterator
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
def reported(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn a failure of the file system into one sentence with the path."""
    try:
        yield
    except OSError as error:
        raise _failure(path, doing, error) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # its own class, not an OSError, e.g. on a full disk
            raise
        raise _failure(path, doing, error) from error


def _failure(path: Path, doing: str, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    free = ""
    if getattr(error, "errno", None) in (None, errno.ENOSPC, errno.EDQUOT):  # None: safetensors', on a full disk
        with contextlib.suppress(OSError):
            parent = next(p for p in [path, *path.parents] if p.exists())
            free = f"{shutil.disk_usage(parent).free / 2**20:.0f} MiB are free there."
    return UserError(f"cannot {doing}: {reason}.", location=str(path), hint=free, code=IO_CODE)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def usable(folder: Path) -> None:
    """Make a folder, and raise UserError where nothing can be written in it: better now than after hours of work."""
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def write(path: Path, content: str | bytes) -> None:
    """Write one file atomically; its folder is made where missing."""
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
    """The value with every float that JSON cannot hold spelled out: "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return "NaN" if value != value else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


class Lines:
    """An append-only JSON-lines file. Each line is handed to the system at once; `sync` puts it on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reported(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream: IO[bytes] = path.open("ab", buffering=0)
            self._stream.truncate(path.read_bytes().rfind(b"\n") + 1)  # a torn end would spoil the next line too

    def append(self, value: dict[str, Any]) -> None:
        """Add one object as one line."""
        line = (json.dumps(plain(value), allow_nan=False, ensure_ascii=False) + "\n").encode()
        with reported(self.path):
            while line:  # a disk that fills up takes a part first, and fails at the rest
                line = line[self._stream.write(line) :]

    def sync(self) -> None:
        """Return when all lines are on the disk."""
        with reported(self.path):
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a JSON-lines file; a torn last line (a crash while writing) is left out."""
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
                raise UserError("not a line of JSON.", location=f"{path}:{number}", code=CORRUPT) from error
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
    """Build a folder that appears at `path` whole, or not at all. A folder already there is replaced.

    A manifest with the size and hash of every file is added; `verify` reads it.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    with reported(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield Folder(temporary)
            listed = {}
            for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
                listed[str(file.relative_to(temporary))] = {"bytes": file.stat().st_size, "sha256": digest(file)}
                _sync(file)
            (temporary / MANIFEST).write_text(json.dumps({"format": 1, "files": listed}, indent=2) + "\n")
            _sync(temporary / MANIFEST)
            for inner in [*(p for p in temporary.rglob("*") if p.is_dir()), temporary]:
                _sync(inner)
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
        listed = json.loads((path / MANIFEST).read_text())["files"]
        for name, expected in listed.items():
            file = path / name
            if Path(name).is_absolute() or ".." in Path(name).parts or file.is_symlink():
                return f"{name}: not a plain file of this folder"
            if not file.is_file():
                return f"{name}: missing"
            if file.stat().st_size != expected["bytes"] or digest(file) != expected["sha256"]:
                return f"{name}: differs from the manifest"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {type(error).__name__}"
    return ""


def remove(path: Path) -> None:
    """Take a folder away so that a crash in the middle leaves no half of it under its name."""
    trash = path.with_name(f".trash-{os.getpid()}-{path.name}")
    path.rename(trash)
    shutil.rmtree(trash)


def delete(path: Path) -> None:
    """Take a file or a folder away, if it is there."""
    if path.is_dir():
        remove(path)
    else:
        path.unlink(missing_ok=True)


def sweep_leftovers(parent: Path) -> None:
    """Delete what a killed process left half-written or half-removed in `parent`; call it under the lock."""
    for left in [*parent.glob(".tmp-[0-9]*-*"), *parent.glob(".trash-[0-9]*-*")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold `path` as a lock; it dies with the process. Raises UserError where another process holds it."""
    with reported(path, "lock"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError("is no folder and cannot become one.", location=str(path.parent)) from None
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 100).decode(errors="replace").strip()
            raise UserError(
                f"another run is at work in this folder (process {holder}).",
                location=str(path.parent),
                hint="Wait for it, stop it, or choose another `out`.",
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        os.close(handle)

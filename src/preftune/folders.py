"""Folders that appear whole or not at all, with a manifest of the size and SHA-256 of every file.

What the manifest does not list is another's, and is never deleted or overwritten. Held by tests/test_folders.py.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from preftune.errors import UserError
from preftune.files import digest, is_leftover, make, reported, sync, temporary_name

NONE = re.compile(r"(?!)")  # no name
MANIFEST, NEXT = "manifest.json", "manifest.next.json"  # the second one stands there while files are being replaced
FORMAT = 1
RUN_FILE, MODEL = "run.toml", "model"  # of a run's folder: what the run was told, and the folder of what it has tuned


class Folder:
    """A folder being built under a temporary name; see `folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def number(self) -> int:
        """What stands in its temporary name: another process builds in the same folder by `built_elsewhere`."""
        return int(self.path.name.removeprefix(".preftune-").removesuffix(".tmp"), 16)

    @classmethod
    def built_elsewhere(cls, path: Path, number: int) -> Folder:
        """The folder of this number that another process builds for `path`."""
        return cls(path.with_name(f".preftune-{number:016x}.tmp"))

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
def folder(path: Path, ours: re.Pattern[str] = NONE) -> Iterator[Folder]:
    """Build a folder that appears at `path` whole, or not at all. It gets a manifest, which `verify` reads.

    Where a folder is there, its files of before are replaced, and all others stay. ours: names that are replaced
    whatever they hold. Raises UserError where a file of another has a name that is needed.
    """
    temporary = temporary_name(path)
    with reported(path):
        make(path.parent)
        temporary.mkdir()
        try:
            yield Folder(temporary)
            entries = {}
            for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
                entries[str(file.relative_to(temporary))] = {"bytes": file.stat().st_size, "sha256": digest(file)}
            (temporary / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": entries}, indent=2) + "\n")
            for path_inside in [*temporary.rglob("*"), temporary]:
                sync(path_inside)
            if path.exists():
                _replace_files(temporary, path, [*entries], ours)
            else:
                temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync(path.parent)


def _replace_files(temporary: Path, path: Path, names: list[str], ours: re.Pattern[str]) -> None:
    """Put the files of a built folder in the place of those of before; one half replaced is not whole, but ours."""
    if obstacles := sorted({*names} & {*not_ours(path, ours)}):
        raise UserError("another has put this file there or changed it.", location=str(path / obstacles[0]),
                        hint="Move it away, and go on with --resume.")  # fmt: skip
    before = listed(path)
    (temporary / MANIFEST).replace(path / NEXT)
    sync(path)
    for name in names:
        make((path / name).parent)
        (temporary / name).replace(path / name)
    for name in {*before} - {*names} - {*not_ours(path, ours)}:
        (path / name).unlink(missing_ok=True)
    sync(path)
    (path / NEXT).replace(path / MANIFEST)
    sync(path)
    shutil.rmtree(temporary)


def _manifests(path: Path) -> list[dict[str, Any]]:
    """What the manifests of a folder list; nothing where there is none, or a damaged one."""
    manifests = []
    for name in (MANIFEST, NEXT):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            manifests.append(dict(json.loads((path / name).read_text())["files"]))
    return manifests


def not_ours(path: Path, ours: re.Pattern[str] = NONE) -> list[str]:
    """Names of the files below a folder that `folder` did not write, or that were changed since."""
    manifests, names = _manifests(path), []
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        if (file.is_dir() and not file.is_symlink()) or name in {MANIFEST, NEXT} or is_leftover(name):
            continue
        if ours.fullmatch(name):
            continue
        if not any(name in entries and not _difference(path, name, entries[name]) for entries in manifests):
            names.append(name)
    return names


def listed(path: Path) -> list[str]:
    """Names of the files that `folder` has written there, whether they are still there or not."""
    return [name for manifest in _manifests(path) for name in manifest]


def lacks_files(path: Path) -> bool:
    """Whether a folder, or a file that its manifest lists, is not there, or was being replaced."""
    if not (path / MANIFEST).exists() or (path / NEXT).exists():
        return True
    return any(not (path / name).exists() for name in listed(path))


def verify(path: Path) -> str:
    """Why a folder written by `folder` cannot be trusted, or an empty string where it can."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            return f"{MANIFEST}: format {manifest['format']!r} is not known here"
        if path.is_symlink() or (path / NEXT).exists():
            return "this is a link" if path.is_symlink() else "its files were being replaced"
        differences = (_difference(path, name, expected) for name, expected in manifest["files"].items())
        return next(filter(None, differences), "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST}: {type(error).__name__}"


def _difference(path: Path, name: str, expected: Mapping[str, Any]) -> str:
    """How a file differs from what a manifest says of it, or an empty string."""
    file = path / name
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        return f"{name}: this is not a file of this folder"
    if any((path / Path(*parts[:depth])).is_symlink() for depth in range(1, len(parts) + 1)):
        return f"{name}: this is a link"
    if not file.is_file():
        return f"{name}: missing"
    if file.stat().st_size != expected["bytes"] or digest(file) != expected["sha256"]:
        return f"{name}: differs from the manifest"
    return ""

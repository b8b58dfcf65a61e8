"""Folders for tests, and a process that is killed at a chosen call, of the disk or another."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from preftune import folders
from preftune.training import update


def build(path: Path, ours: re.Pattern[str] = folders.NONE, **content: str) -> Path:
    with folders.folder(path, ours) as folder:
        for name, text in content.items():
            folder.write(name, text)
    return path


def contents(path: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in path.iterdir() if p.name != folders.MANIFEST}


class Killed(BaseException):
    pass


Functions = Sequence[tuple[object, str]]  # each by the module or class that has it, and its name
DISK: Functions = [(Path, "replace"), (Path, "rename"), (Path, "unlink"), (os, "fsync"), (os, "unlink"), (os, "rmdir")]
AN_UPDATE: Functions = [(update, "assert_finite")]


@contextmanager
def killed_at(call: int, monkeypatch: pytest.MonkeyPatch, functions: Functions = DISK) -> Iterator[None]:
    """The process dies at this call, from 1, of all that change the disk, or of these functions; nothing is cleaned
    up."""
    count = 0
    with monkeypatch.context() as patch:

        def dying(name: str, owner: object) -> None:
            right = getattr(owner, name)

            def counted(*args: object, **keys: object) -> object:
                nonlocal count
                count += 1
                if count >= call:
                    raise Killed
                return right(*args, **keys)

            patch.setattr(owner, name, counted)

        for owner, name in functions:
            dying(name, owner)
        yield

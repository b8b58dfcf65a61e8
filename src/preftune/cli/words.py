"""Reads the words of a command: at most one configuration file, and words such as `optim.lr=1e-6`."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.config.load import load
from preftune.config.resolve import resolve
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.trust import refuse_unnamed


def file_of(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The configuration file, if the command names one, and the words that change it. Raises UserError."""
    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        hint = "Name one file, and then keys, such as optim.lr=1e-6."
        raise UserError(f'"{files[1]}" is neither a flag nor key=value.', hint=hint)
    return files[0] if files else None, [word for word in words if "=" in word]


def run_of(words: Sequence[str], *, model: bool = True) -> Run:
    """The run that the words describe. model: whether it has to name a model. Raises UserError."""
    run = resolve(load(*file_of(words)))
    if model:
        refuse_unnamed(run.model.path, "model.path")
    return run

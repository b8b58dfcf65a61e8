"""What decides a run's result. A run goes on only as the run that it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from preftune.config.load import flatten
from preftune.config.run import Run
from preftune.distributed import Distributed
from preftune.errors import Problem, UserError, nearest

FREE = ("out", "save.every", "save.keep", "evaluate.every", "reference.store")  # may change without changing the result
PLACES = (
    "model.path",
    "model.revision",
    "model.tokenizer",
    "reference.path",
    "data.train",
    "data.evaluate",
    "data.template",
)
# where things stand; what they hold is in the digests


def identity(run: Run, digests: Mapping[str, str]) -> dict[str, Any]:
    """Every key of the run that matters, and digests of data, template, tokenizer and models."""
    keys = flatten(json.loads(msgspec.json.encode(run)))
    return {key: value for key, value in keys.items() if key not in FREE + PLACES} | dict(digests)


def compare(path: Path, now: Mapping[str, Any], allowed: Sequence[str]) -> list[str]:
    """Sentences on the allowed differences between the identity at `path` and this one.

    Raises UserError listing the others, and where `allowed` names something that is no key.
    """
    before = json.loads(path.read_text())
    known = sorted(before.keys() | now.keys())
    if unknown := next((key for key in allowed if key not in known), None):
        raise UserError(
            f'"{unknown}" is nothing that can change.', location="--allow-change", hint=nearest(unknown, known)
        )
    changed = {
        key: f"{_show(before.get(key))} -> {_show(now.get(key))}" for key in known if before.get(key) != now.get(key)
    }
    refused = [Problem(f"was {told}.", location=key) for key, told in changed.items() if key not in allowed]
    if refused:
        names = ",".join(key for key in changed)
        hint = f"Set it back, start anew in another `out`, or say that it may change: --allow-change {names}"
        raise UserError(
            [Problem("the run in this folder is another one:", location=str(path.parent)), *refused, Problem(hint)]
        )
    return [f"{key} {told}" for key, told in changed.items()]


def assert_same_on_all_ranks(now: Mapping[str, Any], dist: Distributed) -> None:
    """Raise UserError where this identity is not that of every rank: one may stand on a machine with other files."""
    keys = sorted(now)
    told = [int.from_bytes(hashlib.sha256(f"{key} {now[key]}".encode()).digest()[:7]) for key in keys]
    as_many = all(dist.all_equal([len(keys)]))
    odd = (
        [key for key, all_equal in zip(keys, dist.all_equal(told), strict=True) if not all_equal]
        if as_many
        else ["its keys"]
    )
    if odd:
        raise UserError(
            f"not the same on every rank: {', '.join(odd)}.", hint="Give each machine the same files and words."
        )


def _show(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:16] + "..."

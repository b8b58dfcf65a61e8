"""What the model said of the held-out rows before training: what all changes are counted from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from preftune import files
from preftune.errors import UserError
from preftune.reference.store import key_of
from preftune.tokens.groups import TokenGroup

NAME = "start.safetensors"


def keep(folder: Path, logp: np.ndarray, groups: Sequence[TokenGroup]) -> None:
    """Write (responses,) log-probabilities, in the order of the groups, and which responses they are of."""
    # safetensors' writer for numpy takes an array's memory as it lies, whatever its strides
    files.write(folder / NAME, save({"logp": np.ascontiguousarray(logp), "rows": _digest(groups)}))


def kept(folder: Path, groups: Sequence[TokenGroup]) -> np.ndarray:
    """The log-probabilities. Raises UserError where they are of other responses than those of the groups."""
    path = folder / NAME
    found = load_file(path) if path.exists() else {}
    if not np.array_equal(found.get("rows", ()), _digest(groups)):
        raise UserError(
            "the held-out rows, or what their tokens count, are not those that the run began with: what changed since "
            "then cannot be told.",
            location=str(folder),
            hint="Resume with those; measure others with `preftune score`.",
        )
    return found["logp"]


def _digest(groups: Sequence[TokenGroup]) -> np.ndarray:
    told = hashlib.sha256()
    for group in groups:
        for at, response in enumerate(group.responses):
            told.update(key_of(group.prompt, response))
            weights = group.column("weight")
            told.update(b"" if weights is None else weights[at].tobytes())
    return np.frombuffer(told.digest(), np.uint8)

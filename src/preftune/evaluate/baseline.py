"""What the model said of the held-out rows before training: all changes are counted from it."""

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


def save_baseline(folder: Path, logp: np.ndarray, groups: Sequence[TokenGroup]) -> None:
    """Write (responses, 4) log-probabilities, in the order of the groups, and which responses they are of."""
    # safetensors' writer for numpy takes an array's memory as it lies, whatever its strides
    arrays = {"logp": logp[:, 0], "parts": logp[:, 1:], "rows": _digest(groups)}
    files.write(folder / NAME, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def load_baseline(folder: Path, groups: Sequence[TokenGroup]) -> np.ndarray:
    """The log-probabilities, (responses, 4); those of parts are NaN where an earlier version has not written them.
    Raises UserError where they are of other responses than those of the groups.
    """
    path = folder / NAME
    with files.reported(path, "read"):
        baseline = load_file(path) if path.exists() else {}
    if not np.array_equal(baseline.get("rows", ()), _digest(groups)) or "logp" not in baseline:
        raise UserError(
            "the held-out rows, or the weights of their tokens, are not those that the run began with, so what changed "
            "is unknown.",
            location=str(folder),
            hint="Resume with the old ones; measure others with `preftune score`.",
        )
    logp = baseline["logp"]
    return np.column_stack([logp, baseline.get("parts", np.full((len(logp), 3), np.nan))])


def _digest(groups: Sequence[TokenGroup]) -> np.ndarray:
    digest = hashlib.sha256()
    for group in groups:
        weights = group.column("weight")
        for index, response in enumerate(group.responses):
            digest.update(key_of(group.prompt, response))
            digest.update(b"" if weights is None else weights[index].tobytes())
    return np.frombuffer(digest.digest(), np.uint8)

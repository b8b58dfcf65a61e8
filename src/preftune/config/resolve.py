"""What a configuration means as a whole, before anything is loaded."""

from __future__ import annotations

import os
from numbers import Integral, Real
from pathlib import Path

import msgspec

from preftune.config.load import convert
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.objective import parts
from preftune.reference.config import NoReference, Stored
from preftune.tokens.aggregate import Mean


def _checked(run: object) -> Run:
    """The run as a file with the same values gives it."""
    if not isinstance(run, Run):
        raise UserError(f"a Run is needed, not {type(run).__name__}.", hint='Use Run(...), or load("run.toml").')
    return convert(msgspec.to_builtins(run, enc_hook=_plain))


def _plain(value: object) -> object:
    """A number of numpy or a path as what a file would hold."""
    if isinstance(value, Integral | Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise UserError(f"a run holds text, numbers, lists and tables; it has {value!r:.60}.")


def resolve(run: Run) -> Run:
    """Hold the run against types and bounds, refuse keys that contradict each other and fill in the reference.

    A run may come from Python, where nothing has looked at it yet. Nothing is loaded. Raises UserError.
    """
    run = _checked(run)
    needs = any("reference" in part.reads for _, part in parts(run.objective))
    kind = run.reference or (Stored() if needs else NoReference())
    if needs and isinstance(kind, NoReference):
        raise UserError(
            "this objective needs a reference.",
            location="reference",
            hint='Use reference = "stored", or leave the key out.',
        )
    if not needs and not isinstance(kind, NoReference):
        raise UserError(
            "this objective uses no reference, so the key has no effect.", location="reference", hint="Remove it."
        )
    if isinstance(run.aggregate, Mean) and all(part.length_normalized for _, part in parts(run.objective)):
        raise UserError(
            "this objective takes means over tokens already, so the key has no effect.",
            location="aggregate",
            hint="Remove it.",
        )
    if run.optim.steps is not None and run.optim.epochs is not None:
        raise UserError("steps and epochs are both given.", location="optim", hint="Remove one of the two.")
    if run.model.revision and Path(run.model.path).expanduser().is_dir():
        raise UserError("has no effect on a folder.", location="model.revision", hint="Remove it.")
    return msgspec.structs.replace(run, reference=kind)

"""preftune tunes language models on human preferences: DPO and its family, exact, fast, and honest about what happened.

Importing this loads no torch; the names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preftune import objective
    from preftune.config.load import load
    from preftune.config.run import Run
    from preftune.diagnosis import diagnose
    from preftune.errors import UserError
    from preftune.objective import dpo_loss
    from preftune.record.reader import Record
    from preftune.report import page
    from preftune.run.score import score
    from preftune.training.loop import train

_PLACES = {
    "Run": "preftune.config.run",
    "load": "preftune.config.load",
    "train": "preftune.training.loop",
    "score": "preftune.run.score",
    "dpo_loss": "preftune.objective",
    "objective": "preftune.objective",
    "Record": "preftune.record.reader",
    "page": "preftune.report",
    "diagnose": "preftune.diagnosis",
    "UserError": "preftune.errors",
}
__all__ = ["Record", "Run", "UserError", "diagnose", "dpo_loss", "load", "objective", "page", "score", "train"]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'preftune' has no attribute {name!r}")
    module = import_module(_PLACES[name])
    return module if name == "objective" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__

"""preftune tunes language models on human preferences: DPO and its family, exact, fast, and honest about what happened.

Importing this loads no torch; the names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module

_PLACES = {
    "Run": "preftune.config.run",
    "load": "preftune.config.load",
    "train": "preftune.train",
    "score": "preftune.scoring",
    "dpo_loss": "preftune.objective",
    "objective": "preftune.objective",
    "Record": "preftune.record.read",
    "page": "preftune.report",
    "diagnose": "preftune.diagnose",
    "UserError": "preftune.errors",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'preftune' has no attribute {name!r}")
    module = import_module(_PLACES[name])
    return module if name == "objective" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__

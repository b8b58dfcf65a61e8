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
    from preftune.evaluate.config import Evaluate
    from preftune.model.config import Adapter, Model
    from preftune.model.unload import unload
    from preftune.objective import DPO, dpo_loss
    from preftune.pack.config import Batch
    from preftune.record.config import Track
    from preftune.record.reader import Record
    from preftune.reference.config import Moving, NoReference, Stored
    from preftune.report import page
    from preftune.rollout.config import Reward, Rollout, Value
    from preftune.rows.config import Data
    from preftune.run.score import score
    from preftune.run.sweep import sweep
    from preftune.run.train import train
    from preftune.training.config import Optim, Save

_MODULES = {
    "config.load": ["load"],
    "config.run": ["Run"],
    "diagnosis": ["diagnose"],
    "errors": ["UserError"],
    "evaluate.config": ["Evaluate"],
    "model.config": ["Adapter", "Model"],
    "model.unload": ["unload"],
    "objective": ["DPO", "dpo_loss"],
    "pack.config": ["Batch"],
    "record.config": ["Track"],
    "record.reader": ["Record"],
    "reference.config": ["Moving", "NoReference", "Stored"],
    "report": ["page"],
    "rollout.config": ["Reward", "Rollout", "Value"],
    "rows.config": ["Data"],
    "run.score": ["score"],
    "run.sweep": ["sweep"],
    "training.config": ["Optim", "Save"],
    "run.train": ["train"],
}
_MODULE_OF = {name: f"preftune.{module}" for module, names in _MODULES.items() for name in names}
__all__ = [
    "DPO", "Adapter", "Batch", "Data", "Evaluate", "Model", "Moving", "NoReference", "Optim", "Record", "Reward",
    "Rollout", "Run", "Save", "Stored", "Track", "UserError", "Value", "diagnose", "dpo_loss", "load", "objective",
    "page", "score", "sweep", "train", "unload",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name == "objective":
        return import_module("preftune.objective")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'preftune' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__

"""Adapters on a loaded model of the caller's, once a run is over. Held by tests/laws/test_loaded.py."""

from __future__ import annotations

from peft.functional import delete_adapter
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel

from preftune.model.adapter import lora_layers
from preftune.model.put_adapter import LEARNS, START

TUNED = (LEARNS, f"{LEARNS}_{START}")  # the adapter of a policy, and what it began as


def unload(model: PreTrainedModel) -> None:
    """Take every adapter that `train` has left on a loaded model out of it, which then is its base again."""
    for name, part in [*model.named_modules()]:
        if isinstance(part, AuxiliaryTrainingWrapper):
            model.set_submodule(name, part.original_module)
        elif isinstance(part, BaseTunerLayer):
            model.set_submodule(name, part.get_base_layer())
    vars(model).pop("peft_config", None)
    model._hf_peft_config_loaded = False


def leave_tuned(model: PreTrainedModel) -> None:
    """Leave the tuned adapter alone on a model, as transformers leaves one that it has loaded; none where the adapter
    is of another model around the same trunk, which has a score."""
    configs = vars(model).get("peft_config", {})
    if LEARNS not in configs:
        unload(model)
        return
    for name in {name for part in lora_layers(model).values() for name in part.lora_A} - {*TUNED}:
        delete_adapter(model, name, "lora_")
        configs.pop(name, None)  # one of a model with a score is not among them
    names = [name for name in TUNED if name in configs]
    for part in model.modules():
        if isinstance(part, BaseTunerLayer):
            part.enable_adapters(True)
            part.set_adapter(names)
        elif isinstance(part, AuxiliaryTrainingWrapper):
            part.enable_adapters(True)
            part.set_adapter([LEARNS])
    model._hf_peft_config_loaded = True

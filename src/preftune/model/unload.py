"""Adapters on a loaded model of the caller's, once a run is over. Held by tests/laws/test_loaded.py."""

from __future__ import annotations

import torch
from peft.functional import delete_adapter
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from preftune.model.adapter import adapters_in, doubled, lora_layers
from preftune.model.put_adapter import LEARNS, START

FIXED = f"{LEARNS}_{START}"  # what the adapter of a policy began as, where that is taken out of it


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
    if FIXED in configs:
        for layer in lora_layers(model).values():
            _join(layer)
        doubled(configs[LEARNS])
    for name in adapters_in(model) - {LEARNS}:
        delete_adapter(model, name, "lora_")
        configs.pop(name, None)  # one of a model with a score is not among them
    for part in model.modules():
        if isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper):
            part.enable_adapters(True)
            part.set_adapter([LEARNS])
    model._hf_peft_config_loaded = True


def _join(layer: LoraLayer) -> None:
    """Make one adapter of twice the rank of the one that has learned and of what it began as, as in the export."""
    for side, axis in ((layer.lora_A, 0), (layer.lora_B, 1)):
        both = [side[name].get_parameter("weight").data for name in (LEARNS, FIXED)]
        side[LEARNS].register_parameter("weight", nn.Parameter(torch.cat(both, axis), requires_grad=False))
    layer.r[LEARNS] *= 2

"""What is trained, as one value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.files import Folder
from preftune.model import load


class Weights(ABC):
    module: PreTrainedModel

    @abstractmethod
    def trained(self) -> dict[str, nn.Parameter]: ...


class WholeModel(Weights):
    def __init__(self, module: PreTrainedModel) -> None:
        self.module = module

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def digest(self) -> str:
        return load.weights_digest(self.module)

    def state(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.trained().items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> str:
        trained = self.trained()
        for name in tensors.keys() | trained.keys():
            if name not in tensors or name not in trained or tensors[name].shape != trained[name].shape:
                return name
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(tensors[name])
        return ""

    def export(self, into: Folder, tokenizer: PreTrainedTokenizerBase) -> None:
        load.export(into, self.module, tokenizer)

"""Adapters: peft makes, begins, names and applies them; here stands what of it learns, what it is compared with, and
what is written.

The base never changes, also where an adapter begins from the base's own directions (PiSSA, OLoRA): what it begins as is
subtracted again by a second adapter that stays. So the model without adapters is always what training began from, one
model in memory is policy and reference, and the exported adapter goes onto the base that everybody has.
Held by tests/model/test_adapter.py.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import final

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.folders import Folder
from preftune.model.adapter_files import BASE, CONFIG, TENSORS
from preftune.model.quantized import QuantizedLinear
from preftune.model.weights import Weights

SHAKEN = 0.1  # of the base's size, so that an adapter shows in every number and still the model works


@final
@dataclass(frozen=True)
class AdapterWeights(Weights):
    """An adapter on a base that stays as it is.

    around: peft's model around the module; began: digest of what training began from; on: the adapters that are added
    when this model is asked, the one that learns first; learned: names of the parameters that are trained, none in a
    model that only answers; start: the adapters of what training began from; rate_of_b: what the rate of up-projections
    is multiplied by (LoRA+, arXiv 2402.12354). Several may stand on one base in memory.
    """

    around: PeftModel
    began: str
    on: tuple[str, ...]
    learned: frozenset[str]
    start: tuple[str, ...]
    rate_of_b: float = 1.0

    @property
    def name(self) -> str:
        """Of the adapter that learns."""
        return self.on[0]

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if name in self.learned}

    def beside(self) -> list[nn.Parameter]:
        return [p for name, p in self.module.named_parameters() if is_adapter(name)]

    def rate(self, name: str) -> float:
        return self.rate_of_b if ".lora_B." in name else 1.0

    def digest(self) -> str:
        """Of the model that training began from; what is added to it is told by the run's keys and its seed."""
        return self.began

    def state(self) -> dict[str, Tensor]:
        """What is learned, and what it began as, which is subtracted."""
        fixed = [f".{name}." for name in self.on[1:]]
        return {name: p.detach() for name, p in self.module.named_parameters()
                if name in self.learned or any(part in name for part in fixed)}  # fmt: skip

    def activate(self) -> None:
        layers = [part for part in self.module.modules() if isinstance(part, BaseTunerLayer)]
        active = {() if layer.disable_adapters else tuple(layer.active_adapters) for layer in layers}
        if active == {self.on}:
            return
        learn = {p: p.requires_grad for p in self.module.parameters()}  # peft changes these with what is active
        for part in self.module.modules():
            if isinstance(part, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
                names = [*self.on] if isinstance(part, BaseTunerLayer) else [n for n in self.on if n in part._adapters]
                part.enable_adapters(bool(names))
                if names:
                    part.set_adapter(names)
        for parameter, learns in learn.items():
            parameter.requires_grad_(learns)

    def as_started(self) -> AdapterWeights:
        """What training began from: the same module, asked without what it has learned."""
        return replace(self, on=self.start, learned=frozenset())

    def export(self, into: Folder, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write peft's layout. An adapter with a fixed part is written as one of twice the rank."""
        config, tensors = deepcopy(self.around.peft_config[self.name]), self._tensors(self.name)
        assert isinstance(config, LoraConfig)
        if len(self.on) > 1:
            fixed = self._tensors(self.on[1])
            for name in fixed:
                tensors[name] = torch.cat([tensors[name], fixed[name]], 0 if ".lora_A." in name else 1)
            doubled(config)
        config.inference_mode = True
        config.init_lora_weights = True
        into.tensors(TENSORS, tensors)
        into.json(CONFIG, _settings(config))
        if kinds := {part.kind for part in self.module.modules() if isinstance(part, QuantizedLinear)}:
            into.json(BASE, {"weights": kinds.pop()})
        tokenizer.save_pretrained(into.path)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        with without_warnings():
            tensors = get_peft_model_state_dict(self.around, adapter_name=name, save_embedding_layers=False)
        others = adapters_in(self.module) - {name}  # peft leaves out those of its own model around this one alone
        return {key: value.detach().cpu() for key, value in tensors.items()
                if not any(f".{other}." in key for other in others)}  # fmt: skip


def _settings(config: LoraConfig) -> dict[str, object]:
    """adapter_config.json: sets become lists, in an order that does not change from run to run."""
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    return json.loads(json.dumps(values, sort_keys=True, default=str))


@contextmanager
def shaken(weights: AdapterWeights) -> Iterator[None]:
    """The adapter with numbers that show: as it begins it adds nothing, so that no comparison would see a fault."""
    generator, before = torch.Generator().manual_seed(0), {}

    def add_noise(parameter: nn.Parameter, size: float) -> None:
        before[parameter] = parameter.detach().clone()
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.add_(noise, alpha=size)

    with torch.no_grad():
        for part in lora_layers(weights.module).values():
            if weights.name in part.lora_A:
                down, up = (side[weights.name].get_parameter("weight") for side in (part.lora_A, part.lora_B))
                scale = float(down.float().std()) * part.scaling[weights.name] * part.r[weights.name] ** 0.5
                add_noise(up, SHAKEN * _size_of_base(part) / max(scale, 1e-12))
        for name, parameter in weights.trained().items():
            if ".modules_to_save." in name:
                add_noise(parameter, SHAKEN * float(parameter.float().std()))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, numbers in before.items():
                parameter.copy_(numbers)


def described(weights: AdapterWeights) -> str:
    """How much of a model learns, what of it whole, and which experts do not."""
    parameters = dict(weights.module.named_parameters())
    learned = sum(p.numel() for p in weights.trained().values())
    base = sum(p.numel() for name, p in parameters.items() if "lora_" not in name and name not in weights.learned)
    base += sum(part.numbers for part in weights.module.modules() if isinstance(part, QuantizedLinear))
    layers = {name.split(".lora_A.")[0].rpartition(".")[2] for name in parameters if ".lora_A." in name}
    text = f"{learned:,} numbers learn beside {base:,} that stay, on {', '.join(sorted(layers))}"
    experts = {name.rpartition(".")[2] for name, p in parameters.items() if p.dim() == 3 and "lora_" not in name}
    wholes = {name.partition(".modules_to_save.")[0] for name in weights.trained() if ".modules_to_save." in name}
    if wholes:
        text += f"; trained whole: {', '.join(sorted({name.rpartition('.')[2] for name in wholes}))}"
    if _unties(weights.module):
        text += ", and embedding and output layer, which are one matrix in the base, are two from here on"
    if experts and not any(isinstance(part, ParamWrapper) for part in weights.module.modules()):
        text += f"; the experts have no adapter: name {', '.join(sorted(experts))} in adapter.targets"
    return text


def _unties(module: PreTrainedModel) -> bool:
    """Whether embedding and output layer are one matrix in the base, of which a copy is trained for one or for both."""
    sides = [module.get_input_embeddings(), module.get_output_embeddings()]
    bases = [side.original_module if isinstance(side, AuxiliaryTrainingWrapper) else side for side in sides]
    first, last = (getattr(base, "weight", None) for base in bases)
    return first is not None and first is last and bases != sides


def is_adapter(parameter: str) -> bool:
    """Whether a parameter of this name is part of an adapter, or trained whole in place of one of the base."""
    return "lora_" in parameter or ".modules_to_save." in parameter


def adapters_in(module: nn.Module) -> set[str]:
    """Names of all adapters within peft."""
    return {name for part in lora_layers(module).values() for name in part.lora_A}


def doubled(config: LoraConfig) -> None:
    """Let a config speak of an adapter of twice its rank, with the same scale."""
    config.lora_alpha *= 2**0.5 if config.use_rslora else 2  # pyright: ignore[reportAttributeAccessIssue]  any number
    config.r *= 2


def lora_layers(module: nn.Module) -> dict[str, LoraLayer]:
    """Every layer with adapters, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, LoraLayer)}


def _size_of_base(layer: LoraLayer) -> float:
    base = layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight
    assert isinstance(base, Tensor)
    whole = base.full_tensor() if isinstance(base, DTensor) else base
    return float(whole.detach().float().std())


@contextmanager
def without_warnings() -> Iterator[None]:
    """Without the warnings of peft: what they are about is checked here, or is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

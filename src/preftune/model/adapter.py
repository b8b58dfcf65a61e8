"""Adapters: peft makes, begins, names and applies them; here stands what of it learns, what it is compared with, and
what is written.

The base never changes, also where an adapter begins from the base's own directions (PiSSA, OLoRA): what it begins as is
subtracted again by a second adapter that stays. So the model without adapters is always what training began from, one
model in memory is policy and reference, and the exported adapter goes onto the base that everybody has.
Held by tests/model/test_adapter.py.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import final

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from preftune.errors import UserError, nearest, third_party_message
from preftune.folders import Folder
from preftune.model.adapter_files import CONFIG, TENSORS, AdapterFiles
from preftune.model.config import Adapter
from preftune.model.weights import Weights

LEARNS, START = "default", "start"  # names of the adapters within peft
PISSA = "pissa_niter_16"  # a truncated decomposition: the whole one takes minutes for each matrix of a 7B model
SHAKEN = 0.1  # of the base's size, so that an adapter shows in every number and still the model works
NAMED = 12  # names that an error gives


@final
@dataclass(frozen=True)
class AdapterWeights(Weights):
    """An adapter on a base that stays as it is.

    around: peft's model around the module; base: digest of what training began from; on: the adapters that are added
    when this model is asked; learned: names of the parameters that are trained, none in a model that only answers;
    ratios: what the rate is multiplied by, by a part of a parameter's name (LoRA+, arXiv 2402.12354).
    """

    around: PeftModel
    base: str
    on: tuple[str, ...]
    learned: frozenset[str]
    start: tuple[str, ...]
    rate_of_b: float = 1.0

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if name in self.learned}

    def rate(self, name: str) -> float:
        return self.rate_of_b if ".lora_B." in name else 1.0

    def digest(self) -> str:
        """Of the base and, where it is not what training began from, of all that is added to it."""
        if self.on == self.start:
            return self.base
        digest = hashlib.sha256(self.base.encode())
        for name, tensor in sorted(self.state().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def state(self) -> dict[str, Tensor]:
        """What is learned, and what it began as, which is subtracted."""
        fixed = [f".{name}." for name in self.on if name != LEARNS]
        parameters = self.module.named_parameters()
        return {
            name: p.detach()
            for name, p in parameters
            if name in self.learned or any(part in name for part in fixed)
        }  # fmt: skip

    def activate(self) -> None:
        layers = [part for part in self.module.modules() if isinstance(part, BaseTunerLayer)]
        active = {() if layer.disable_adapters else tuple(layer.active_adapters) for layer in layers}
        if active == {self.on}:
            return
        learn = {p: p.requires_grad for p in self.module.parameters()}  # peft changes these with what is active
        for part in self.module.modules():
            if isinstance(part, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
                part.enable_adapters(bool(self.on))
                names = [*self.on] if isinstance(part, BaseTunerLayer) else [part.check_set_adapter([*self.on] or [""])]
                if self.on and any(names):
                    part.set_adapter([name for name in names if name])
        for parameter, learns in learn.items():
            parameter.requires_grad_(learns)

    def as_started(self) -> AdapterWeights:
        """What training began from: the same module, asked without what it has learned."""
        return replace(self, on=self.start, learned=frozenset())

    def export(self, into: Folder, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write peft's layout. An adapter with a fixed part is written as one of twice the rank."""
        config, tensors = deepcopy(self.around.peft_config[LEARNS]), self._tensors(LEARNS)
        assert isinstance(config, LoraConfig)
        if START in self.on:
            fixed = self._tensors(START)
            for name in fixed:
                tensors[name] = torch.cat([tensors[name], fixed[name]], 0 if ".lora_A." in name else 1)
            config.lora_alpha *= 2**0.5 if config.use_rslora else 2  # so that the scale stays
            config.r *= 2
        config.inference_mode = True
        config.init_lora_weights = True
        into.tensors(TENSORS, tensors)
        into.json(CONFIG, _settings(config))
        tokenizer.save_pretrained(into.path)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        with _quiet():
            tensors = get_peft_model_state_dict(self.around, adapter_name=name, save_embedding_layers=False)
        return {key: value.detach().cpu() for key, value in tensors.items()}


def _settings(config: LoraConfig) -> dict[str, object]:
    """adapter_config.json: sets become lists, in an order that does not change from run to run."""
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    return json.loads(json.dumps(values, sort_keys=True, default=str))


def begin_adapter(
    module: PreTrainedModel, table: Adapter, *, base: str, revision: str | None, digest: str, seed: int
) -> AdapterWeights:
    """Put a new adapter into a model, whose own parameters then learn no more.

    base, revision: name of the model, for whoever loads the adapter; digest: of the model; seed: of the adapter's
    random numbers. Raises UserError where the model has no such layers.
    """
    modules, parameters = _targets(module, table)
    begins_off = table.start in ("pissa", "olora")
    config = LoraConfig(
        r=table.rank,
        lora_alpha=table.alpha,  # pyright: ignore[reportArgumentType]  peft divides it, and takes any number
        use_rslora=table.scaling == "root",
        use_dora=table.kind == "dora",
        target_modules=modules,
        target_parameters=parameters or None,
        init_lora_weights=table.start if table.start in ("gaussian", "orthogonal") else True,  # type: ignore[arg-type]
        modules_to_save=_saved_whole(module, table),
        task_type="CAUSAL_LM" if module.get_output_embeddings() is not None else "SEQ_CLS",
    )
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _quiet():
        torch.manual_seed(seed)
        try:
            around = get_peft_model(module, config)
            assert isinstance(around, PeftModel)
            if begins_off:
                _begin_in_directions_of_the_base(around, table.start)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"peft cannot make this adapter: {third_party_message(error)}",
                            location="adapter") from error  # fmt: skip
    config.base_model_name_or_path, config.revision = base, revision
    on = (LEARNS, START) if begins_off else (LEARNS,)
    return _weights(around, digest, on, (), table.ratio)


def go_on(module: PreTrainedModel, files: AdapterFiles, table: Adapter, *, digest: str) -> AdapterWeights:
    """Put a stored adapter into its base, to be trained further, and once more as what training begins from."""
    around = load_adapter(module, files, "adapter.path", (LEARNS, START))
    bytes_of_adapter = (files.folder / TENSORS).read_bytes() + (files.folder / CONFIG).read_bytes()
    began = hashlib.sha256(digest.encode() + bytes_of_adapter).hexdigest()
    return _weights(around, began, (LEARNS,), (START,), table.ratio)


def load_adapter(
    module: PreTrainedModel, files: AdapterFiles, location: str, names: tuple[str, ...] = (LEARNS,)
) -> PeftModel:
    """Put a stored adapter into its base under these names, the first of which is on. Raises UserError where it does
    not fit, or asks for what this library does not do."""
    location = f"{location}: {files.folder}"
    settings = {key: value for key, value in files.settings.items() if key not in ("inference_mode", "lora_dropout")}
    try:
        tensors = load_file(files.folder / TENSORS)
        configs = [LoraConfig(**deepcopy(settings)) for _ in names]
        for config in configs:
            config.init_lora_weights = True
        if configs[0].bias != "none" or configs[0].trainable_token_indices:
            raise UserError("it trains biases or single tokens of the base, which is not supported.", location=location)
        with _quiet(), torch.random.fork_rng(devices=[]):
            around = get_peft_model(module, configs[0])
            assert isinstance(around, PeftModel)
            for name, config in zip(names[1:], configs[1:], strict=True):
                around.add_adapter(name, config)
            results = [set_peft_model_state_dict(around, dict(tensors), adapter_name=name) for name in names]
    except (ValueError, TypeError, RuntimeError, OSError, KeyError) as error:
        raise UserError(f"cannot be put into the model: {third_party_message(error)}", location=location,
                        hint="Is it the adapter of another model?") from error  # fmt: skip
    own = [f".{name}." for name in names]
    missing = [key for result in results for key in result.missing_keys if any(part in key for part in own)]
    for problem, keys in (("has no numbers for", missing), ("has numbers that the model has no place for,",
                                                            [k for r in results for k in r.unexpected_keys])):  # fmt: skip
        if keys:
            raise UserError(f"{problem} {_some(keys)}.", location=location, hint="Is it the adapter of another model?")
    for config in configs:
        config.base_model_name_or_path, config.revision = files.base, files.revision
    return around


@contextmanager
def shaken(weights: AdapterWeights) -> Iterator[None]:
    """The adapter with numbers that show: as it begins it adds nothing, so that no comparison would see a fault."""
    generator, before = torch.Generator().manual_seed(0), {}

    def add_noise(parameter: nn.Parameter, size: float) -> None:
        before[parameter] = parameter.detach().clone()
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.add_(noise, alpha=size)

    with torch.no_grad():
        for part in weights.module.modules():
            if isinstance(part, LoraLayer) and LEARNS in part.lora_A:
                down, up = part.lora_A[LEARNS].weight, part.lora_B[LEARNS].weight
                scale = float(down.float().std()) * part.scaling[LEARNS] * part.r[LEARNS] ** 0.5
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
    """How much of a model learns, and which experts do not."""
    parameters = dict(weights.module.named_parameters())
    learned, total = (sum(p.numel() for p in ps) for ps in (weights.trained().values(), parameters.values()))
    layers = {name.split(".lora_A.")[0].rpartition(".")[2] for name in parameters if ".lora_A." in name}
    text = f"{learned:,} numbers learn beside {total - learned:,} that stay, on {', '.join(sorted(layers))}"
    experts = sorted(
        {name.rpartition(".")[2] for name, p in parameters.items() if p.dim() == 3 and "lora_" not in name}
        if not any(isinstance(part, ParamWrapper) for part in weights.module.modules()) else set()
    )  # fmt: skip
    if experts:
        text += f"; the experts have no adapter: name {', '.join(experts)} in adapter.targets"
    return text


def _weights(around: PeftModel, digest: str, on: tuple[str, ...], start: tuple[str, ...], rate: float) -> AdapterWeights:
    module = around.get_base_model()
    assert isinstance(module, PreTrainedModel)
    learned = []
    for name, parameter in module.named_parameters():
        learns = f".{LEARNS}." in name and parameter.requires_grad
        parameter.requires_grad_(learns)
        if ("lora_" in name or learns) and parameter.is_floating_point():
            parameter.data = parameter.data.float()
        if learns:
            learned.append(name)
    weights = AdapterWeights(module, around, digest, on, frozenset(learned), start, rate)
    weights.activate()
    return weights


def _begin_in_directions_of_the_base(around: PeftModel, start: str) -> None:
    """PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) take what the adapter begins as out of the base. Here the
    base stays, and a second adapter, which does not learn, takes it out."""
    fixed = deepcopy(around.peft_config[LEARNS])
    fixed.modules_to_save = None
    around.add_adapter(START, fixed)
    for part in around.modules():
        if not isinstance(part, LoraLayer):
            continue
        weight = part.get_base_layer().weight
        before = weight.data.clone()
        if start == "pissa":
            part.pissa_init(LEARNS, PISSA)
        else:
            part.olora_init(LEARNS)
        weight.data = before
        part.lora_A[START].weight.data = part.lora_A[LEARNS].weight.data.clone()
        part.lora_B[START].weight.data = -part.lora_B[LEARNS].weight.data


def _targets(module: PreTrainedModel, table: Adapter) -> tuple[list[str], list[str]]:
    """Names by which peft finds layers, and those by which it finds parameters of experts."""
    head = module.get_output_embeddings()
    layers = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, (nn.Linear, Conv1D)) and part is not head and name != "score"
    }
    if table.targets == "all-linear":
        names, parameters = sorted({name.rpartition(".")[2] for name in layers}), []
        _refuse_rank(layers, table)
        return names, parameters
    experts = {name for name, p in module.named_parameters() if p.dim() == 3}
    names, parameters = [], []
    for target in table.targets:
        chosen = {name: part for name, part in layers.items() if _ends(name, target)}
        _refuse_rank(chosen, table)
        if chosen:
            names.append(target)
        elif any(_ends(name, target) for name in experts):
            parameters.append(target)
        elif any(part is head and _ends(name, target) for name, part in module.named_modules()):
            raise UserError(f"{target} is the output layer, on which no adapter can be.", location="adapter.targets",
                            hint=f'Train it whole: adapter.train_also = ["{target}"].')  # fmt: skip
        else:
            known = sorted({name.rpartition(".")[2] for name in (*layers, *experts)})
            hint = nearest(target, known) or f"It has {', '.join(known)}."
            raise UserError(f"the model has no layer {target}.", location="adapter.targets", hint=hint)
    return names, parameters


def _refuse_rank(layers: dict[str, nn.Module], table: Adapter) -> None:
    for name, part in layers.items():
        rows, columns = part.get_parameter("weight").shape if isinstance(part, Conv1D) else (
            part.out_features, part.in_features)  # fmt: skip
        if table.rank > min(rows, columns):
            raise UserError(f"is more than the smaller side of {name}, which is {rows} x {columns}.",
                            location="adapter.rank", hint=f"Use at most {min(rows, columns)}.")  # fmt: skip


def _saved_whole(module: PreTrainedModel, table: Adapter) -> list[str] | None:
    """Parts that are copied and trained whole: those that are named, and a score, which begins at nothing."""
    names = [name for name, part in module.named_modules() if any(True for _ in part.parameters())]
    for part in table.train_also:
        if not any(_ends(name, part) for name in names):
            known = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()})
            raise UserError(f"the model has no part {part}.", location="adapter.train_also",
                            hint=nearest(part, known) or f"It has {', '.join(known[:NAMED])}.")  # fmt: skip
    score = ["score"] if module.get_output_embeddings() is None else []
    return [*table.train_also, *score] or None


def _size_of_base(layer: LoraLayer) -> float:
    base = layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight
    return float(base.detach().float().std()) if base.is_floating_point() else 0.02  # what most models begin with


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of peft: what they are about is checked here, or is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

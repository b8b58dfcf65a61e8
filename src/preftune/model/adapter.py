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

    def rate(self, name: str) -> float:
        return self.rate_of_b if ".lora_B." in name else 1.0

    def digest(self) -> str:
        """Of the model that training began from; what is added to it is told by the run's keys and its seed."""
        return self.began

    def state(self) -> dict[str, Tensor]:
        """What is learned, and what it began as, which is subtracted."""
        fixed = [f".{name}." for name in self.on[1:]]
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
    module: PreTrainedModel, table: Adapter, *, base: str, revision: str | None, digest: str, seed: int,
    name: str = LEARNS,
) -> AdapterWeights:  # fmt: skip
    """Put a new adapter into a model, whose own parameters then learn no more.

    base, revision: name of the model, for whoever loads the adapter; digest: of the model; seed: of the adapter's
    random numbers; name: within peft. Raises UserError where the model has no such layers.
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
            around = _put_into(module, config, name)
            if begins_off:
                _begin_in_directions_of_the_base(around, table.start, name)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"peft cannot make this adapter: {third_party_message(error)}",
                            location="adapter") from error  # fmt: skip
    config.base_model_name_or_path, config.revision = base, revision
    on = (name, f"{name}_{START}") if begins_off else (name,)
    return _weights(around, digest, on, (), table.ratio)


def go_on(
    module: PreTrainedModel, files: AdapterFiles, table: Adapter, *, digest: str, location: str, name: str = LEARNS
) -> AdapterWeights:
    """Put a stored adapter into its base, to be trained further, and once more as what training begins from."""
    start = f"{name}_{START}"
    around = load_adapter(module, files, location, (name, start))
    bytes_of_adapter = (files.folder / TENSORS).read_bytes() + (files.folder / CONFIG).read_bytes()
    began = hashlib.sha256(digest.encode() + bytes_of_adapter).hexdigest()
    return _weights(around, began, (name,), (start,), table.ratio)


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
            around = _put_into(module, configs[0], names[0])
            for name, config in zip(names[1:], configs[1:], strict=True):
                around.add_adapter(name, config)
            results = [set_peft_model_state_dict(around, dict(tensors), adapter_name=name) for name in names]
    except (ValueError, TypeError, RuntimeError, OSError, KeyError) as error:
        raise UserError(f"cannot be put into the model: {third_party_message(error)}", location=location,
                        hint="Is it the adapter of another model?") from error  # fmt: skip
    pairs = zip(names, results, strict=True)
    missing = [key for name, result in pairs for key in result.missing_keys if f".{name}." in key]
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
            if isinstance(part, LoraLayer) and weights.name in part.lora_A:
                down, up = part.lora_A[weights.name].weight, part.lora_B[weights.name].weight
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
    """How much of a model learns, and which experts do not."""
    parameters = dict(weights.module.named_parameters())
    learned = sum(p.numel() for p in weights.trained().values())
    base = sum(p.numel() for name, p in parameters.items() if "lora_" not in name and name not in weights.learned)
    layers = {name.split(".lora_A.")[0].rpartition(".")[2] for name in parameters if ".lora_A." in name}
    text = f"{learned:,} numbers learn beside {base:,} that stay, on {', '.join(sorted(layers))}"
    experts = sorted(
        {name.rpartition(".")[2] for name, p in parameters.items() if p.dim() == 3 and "lora_" not in name}
        if not any(isinstance(part, ParamWrapper) for part in weights.module.modules()) else set()
    )  # fmt: skip
    if experts:
        text += f"; the experts have no adapter: name {', '.join(experts)} in adapter.targets"
    return text


def _put_into(module: PreTrainedModel, config: LoraConfig, name: str) -> PeftModel:
    """peft's model around a module, which may have other adapters, whose parameters go on learning or not as before."""
    learn = {p: p.requires_grad for n, p in module.named_parameters() if _is_adapter(n)}
    around = get_peft_model(module, config, adapter_name=name)
    assert isinstance(around, PeftModel)
    for parameter, learns in learn.items():
        parameter.requires_grad_(learns)
    return around


def _is_adapter(parameter: str) -> bool:
    return "lora_" in parameter or ".modules_to_save." in parameter


def _weights(
    around: PeftModel, digest: str, on: tuple[str, ...], start: tuple[str, ...], rate: float
) -> AdapterWeights:
    """Adapters in a model: the first of `on` learns, in fp32, and other adapters do as before."""
    module, learned, answering = around.get_base_model(), [], (*on[1:], *start)
    assert isinstance(module, PreTrainedModel)
    for name, parameter in module.named_parameters():
        if f".{on[0]}." in name and _is_adapter(name):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
            learned.append(name)
        elif any(f".{adapter}." in name for adapter in answering):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(False)
    weights = AdapterWeights(module, around, digest, on, frozenset(learned), start, rate)
    weights.activate()
    return weights


def _begin_in_directions_of_the_base(around: PeftModel, start: str, name: str) -> None:
    """PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) take what the adapter begins as out of the base. Here the
    base stays, and a second adapter, which does not learn, takes it out."""
    fixed_name, fixed = f"{name}_{START}", deepcopy(around.peft_config[name])
    fixed.modules_to_save = None
    around.add_adapter(fixed_name, fixed)
    for part in around.modules():
        if not isinstance(part, LoraLayer):
            continue
        weight = part.get_base_layer().weight
        before = weight.data.clone()
        if start == "pissa":
            part.pissa_init(name, PISSA)
        else:
            part.olora_init(name)
        weight.data = before
        part.lora_A[fixed_name].weight.data = part.lora_A[name].weight.data.clone()
        part.lora_B[fixed_name].weight.data = -part.lora_B[name].weight.data


def _targets(module: PreTrainedModel, table: Adapter) -> tuple[list[str], list[str]]:
    """Names by which peft finds layers, and those by which it finds parameters of experts."""
    head = module.get_output_embeddings()
    adapted = {name: part.get_base_layer() for name, part in module.named_modules() if isinstance(part, LoraLayer)}
    inside = tuple(f"{name}." for name in adapted)
    layers = adapted | {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, (nn.Linear, Conv1D)) and part is not head
        and not name.startswith((*inside, "score")) and ".modules_to_save." not in name
    }  # fmt: skip
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

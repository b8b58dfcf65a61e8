"""Put an adapter of peft into a model: a new one, or one that is stored. Held by tests/model/test_adapter.py."""

from __future__ import annotations

import hashlib
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from preftune.errors import UserError, nearest, third_party_message
from preftune.model.adapter import AdapterWeights, is_adapter, lora_layers, without_warnings
from preftune.model.adapter_files import CONFIG, TENSORS, AdapterFiles
from preftune.model.config import Adapter
from preftune.model.files_fit import some_of

LEARNS = "default"  # name of the adapter within peft
START, BEFORE = "start", "before"  # what names end with of an adapter that is a part of it, and of what it goes on from
PISSA = "pissa_niter_16"  # a truncated decomposition: the whole one takes minutes for each matrix of a 7B model
OF_TRAINING = ("inference_mode", "lora_dropout", "init_lora_weights", "loftq_config", "eva_config", "corda_config")
NAMED = 12  # names that an error gives


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
    with torch.random.fork_rng(devices=devices), without_warnings():
        torch.manual_seed(seed)
        try:
            around = _put_into(module, config, name)
            if table.kind == "dora":
                _measure_norms_again(around, name)
            if begins_off:
                _begin_in_directions_of_the_base(around, table.start, name)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"peft cannot make this adapter: {third_party_message(error)}",
                            location="adapter") from error  # fmt: skip
    config.base_model_name_or_path, config.revision = base, revision
    on = (name, f"{name}_{START}") if begins_off else (name,)
    return _weights(around, digest, on, (), table.ratio)


def go_on(
    module: PreTrainedModel, files: AdapterFiles, table: Adapter, *, base: str, revision: str | None, digest: str,
    location: str, name: str = LEARNS,
) -> AdapterWeights:  # fmt: skip
    """Put a stored adapter into a model, to be trained further, and once more as what training begins from. base,
    revision: name of this model, which is what the adapter is of from now on."""
    start = f"{name}_{BEFORE}"
    around = load_adapter(module, files, location, (name, start))
    around.peft_config[name].base_model_name_or_path, around.peft_config[name].revision = base, revision
    return _weights(around, _digest_with(files, digest), (name,), (start,), table.ratio)


def put_beside(
    module: PreTrainedModel, files: AdapterFiles, *, digest: str, location: str, name: str
) -> AdapterWeights:
    """Put a stored adapter that does not learn into a model, beside others. digest: of the model without any."""
    around = load_adapter(module, files, location, (name,))
    weights = _weights(around, _digest_with(files, digest), (name,), (), 1.0)
    for parameter in weights.trained().values():
        parameter.requires_grad_(False)
    return replace(weights, learned=frozenset())


def _measure_norms_again(around: PeftModel, name: str) -> None:
    """DoRA's magnitudes are to begin as the norms that they are divided by, which are in fp32. peft takes them in the
    base's type, so that on bfloat16 a new adapter is 0.4 % off its base (findings/peft_dora_off_its_base.sh)."""
    for part in lora_layers(around).values():
        down, up = (side[name].get_parameter("weight").data.float() for side in (part.lora_A, part.lora_B))
        base, vector = part.get_base_layer(), part.lora_magnitude_vector[name]
        vector.update_layer(base_layer=base, lora_A=down, lora_B=up, scaling=part.scaling[name])  # pyright: ignore[reportCallIssue]


def _digest_with(files: AdapterFiles, digest: str) -> str:
    """Of a model of this digest with a stored adapter."""
    bytes_of_adapter = (files.folder / TENSORS).read_bytes() + (files.folder / CONFIG).read_bytes()
    return hashlib.sha256(digest.encode() + bytes_of_adapter).hexdigest()


def load_adapter(
    module: PreTrainedModel, files: AdapterFiles, location: str, names: tuple[str, ...] = (LEARNS,)
) -> PeftModel:
    """Put a stored adapter into its base under these names, the first of which is on. Raises UserError where it does
    not fit, or asks for what this library does not do."""
    location = f"{location}: {files.folder}"
    settings = _settings(files, location)
    try:
        tensors = load_file(files.folder / TENSORS)
        configs = [LoraConfig(**deepcopy(settings)) for _ in names]
        if configs[0].bias != "none" or configs[0].trainable_token_indices:
            raise UserError("it trains biases or single tokens of the base, which is not supported.", location=location)
        with without_warnings(), torch.random.fork_rng(devices=[]):
            around = _put_into(module, configs[0], names[0])
            for name, config in zip(names[1:], configs[1:], strict=True):
                around.add_adapter(name, config)
            results = [set_peft_model_state_dict(around, dict(tensors), adapter_name=name) for name in names]
    except UserError:
        raise
    except Exception as error:  # peft, torch and safetensors raise many kinds; each means that it does not fit
        raise UserError(f"cannot be put into the model: {third_party_message(error)}", location=location,
                        hint="Is it the adapter of another model?") from error  # fmt: skip
    pairs = zip(names, results, strict=True)
    missing = [key for name, result in pairs for key in result.missing_keys if f".{name}." in key]
    unknown = [key for result in results for key in result.unexpected_keys]
    for problem, keys in (("has no numbers for", missing), ("has numbers that the model has no place for,", unknown)):
        if keys:
            raise UserError(
                f"{problem} {some_of(keys)}.", location=location, hint="Is it the adapter of another model?"
            )
    for config in configs:
        config.base_model_name_or_path, config.revision = files.base, files.revision
    return around


def _settings(files: AdapterFiles, location: str) -> dict[str, Any]:
    """What a stored adapter says of itself, without how it began and what is for training by others. Raises UserError
    where it asks for what this version of peft does not know."""
    known = {field.name for field in fields(LoraConfig)}
    settings = {key: value for key, value in files.settings.items() if key not in OF_TRAINING}
    if unknown := [key for key, value in settings.items() if key not in known and value]:
        raise UserError(f"{unknown[0]} of {CONFIG} is unknown to the installed peft.", location=location,
                        hint="Install the version that has written it, or a newer one.")  # fmt: skip
    return {key: value for key, value in settings.items() if key in known}


def _put_into(module: PreTrainedModel, config: LoraConfig, name: str) -> PeftModel:
    """peft's model around a module, which may have other adapters, whose parameters go on learning or not as before."""
    learn = {p: p.requires_grad for n, p in module.named_parameters() if is_adapter(n)}
    around = get_peft_model(module, config, adapter_name=name)
    assert isinstance(around, PeftModel)
    for parameter, learns in learn.items():
        parameter.requires_grad_(learns)
    return around


def _weights(
    around: PeftModel, digest: str, on: tuple[str, ...], start: tuple[str, ...], rate: float
) -> AdapterWeights:
    """Adapters in a model: the first of `on` learns, and those of others do as before. Thin matrices are in fp32."""
    module, learned = around.get_base_model(), []
    assert isinstance(module, PreTrainedModel)
    for name, parameter in module.named_parameters():
        adapters = [adapter for adapter in (*on, *start) if f".{adapter}." in name and is_adapter(name)]
        if adapters:
            parameter.requires_grad_(adapters == [on[0]])
        if adapters == [on[0]]:
            learned.append(name)
        if adapters and "lora_" in name:  # parts that are trained whole keep the type that the model multiplies in
            parameter.data = parameter.data.float()
    weights = AdapterWeights(module, around, digest, on, frozenset(learned), start, rate)
    weights.activate()
    return weights


def _begin_in_directions_of_the_base(around: PeftModel, start: str, name: str) -> None:
    """PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) take what the adapter begins as out of the base. Here the
    base stays, and a second adapter, which does not learn, takes it out."""
    fixed_name, fixed = f"{name}_{START}", deepcopy(around.peft_config[name])
    assert isinstance(fixed, LoraConfig)
    fixed.modules_to_save = None
    PeftModel.add_adapter(around, fixed_name, fixed)  # its heir for scores would give this one a score as well
    for part in lora_layers(around).values():
        weight = part.get_base_layer().get_parameter("weight")
        before = weight.data.clone()
        if start == "pissa":
            part.pissa_init(name, PISSA)
        else:
            part.olora_init(name)
        weight.data = before
        for side, sign in ((part.lora_A, 1), (part.lora_B, -1)):
            side[fixed_name].get_parameter("weight").data = sign * side[name].get_parameter("weight").data


def _targets(module: PreTrainedModel, table: Adapter) -> tuple[list[str], list[str]]:
    """Names by which peft finds layers, and those by which it finds parameters of experts."""
    head = module.get_output_embeddings()
    adapted = {name: part.get_base_layer() for name, part in lora_layers(module).items()}
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
    if not table.targets:
        raise UserError("names no layer.", location="adapter.targets", hint='Use "all-linear".')
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
        sides = [part.in_features, part.out_features] if isinstance(part, nn.Linear) else [
            *part.get_parameter("weight").shape]  # fmt: skip
        if table.rank > min(sides):
            raise UserError(f"is more than the smaller side of {name}, which is {sides[0]} x {sides[1]}.",
                            location="adapter.rank", hint=f"Use at most {min(sides)}.")  # fmt: skip


def _saved_whole(module: PreTrainedModel, table: Adapter) -> list[str] | None:
    """Parts that are copied and trained whole: those that are named, and a score, which begins at nothing."""
    names = [name for name, part in module.named_modules() if any(True for _ in part.parameters())]
    for part in table.train_also:
        if not any(_ends(name, part) for name in names):
            known = sorted({last for name in names if (last := name.rpartition(".")[2]) and not last.isdigit()})
            text = f"the model has no part {part} with weights that could be trained."
            raise UserError(text, location="adapter.train_also",
                            hint=nearest(part, known) or f"It has {', '.join(known[:NAMED])}.")  # fmt: skip
    score = ["score"] if module.get_output_embeddings() is None else []
    return [*table.train_also, *score] or None


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")

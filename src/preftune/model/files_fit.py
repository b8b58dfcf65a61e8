"""Whether the files of a model are of one model: what its weights are called, and what types and shapes they have.

Held by tests/model/test_load.py and tests/model/test_weights.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from preftune.errors import UserError

LISTED = 3  # names of weights that a sentence gives
FEW_BITS = ("F8", "F6", "F4")  # how safetensors begins the names of types that need a scale beside them
FROM_CONFIG = re.compile(r"inv_freq|(cos|sin)_cached|masked_bias|[kv]_scale")  # what older files hold beside weights
OTHER_MODEL = "Is it the config of another model?"


def some_of(names: Sequence[str]) -> str:
    """The first names of a list, for a sentence."""
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def names_left_out(module: PreTrainedModel, unexpected: Iterable[str], types: Mapping[str, str]) -> list[str]:
    """Weights in the files that are no part of the model, also those that transformers passes over on purpose; but not
    numbers that the model works out by itself."""
    known, buffers = module.state_dict(), {name.rpartition(".")[2] for name, _ in module.named_buffers()}
    passed_over = [name for name in types if name not in known and _is_passed_over(module, name)]
    derived = buffers - {name.rpartition(".")[2] for name in known}
    return sorted(name for name in {*unexpected, *passed_over} if name.rpartition(".")[2] not in derived)


def _is_passed_over(module: PreTrainedModel, name: str) -> bool:
    patterns = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def mismatch(
    module: PreTrainedModel, info: Mapping[str, Any], types: Mapping[str, str], left_out: Collection[str], *,
    scaled: bool,
) -> tuple[str, str]:  # fmt: skip
    """Why weights and config.json are not of one model, and a hint; empty where they are.

    types: of the tensors in its files; left_out: those that neither the model nor the caller reads; scaled:
    whether its config says how weights of few bits are scaled.
    """
    known = set(module.state_dict())
    for name, size, expected in sorted(info["mismatched_keys"]):
        return f"{name} is {_shape(size)} in its weights, but {_shape(expected)} by its config.json.", OTHER_MODEL
    if missing := sorted(info["missing_keys"]):
        return f"has no weights for {some_of(missing)}.", "Not the folder of a causal language model?"
    if problem := _type_problem({name: types[name] for name in sorted(known & types.keys())}, scaled=scaled):
        return problem, "Quantized weights cannot be trained."
    alike = {_pattern(name) for name in known}
    other_layers = {_layer(key) for key in info["unexpected_keys"] if _pattern(key) not in alike}
    beyond = [k for k in info["unexpected_keys"] if _pattern(k) in alike and _layer(k) not in other_layers]
    if beyond:  # layers like the model's own, and no prediction layer, which has parts of other names
        return f"holds weights that its config.json has no place for, such as {min(beyond)}.", OTHER_MODEL
    floats = [name for name in left_out if types.get(name, "F32").startswith(("F", "BF"))]
    inside = [name for name in floats if not FROM_CONFIG.search(name) and not _is_passed_over(module, name)
              and _is_inside(module, name)]  # fmt: skip
    if inside:
        text = f"holds weights inside its layers that the model of its config.json does not use: {some_of(inside)}."
        if any(".lora_" in name for name in inside):
            return text, "It is an adapter that was not merged: merge it by peft's merge_and_unload() and save that."
        return text, f"{OTHER_MODEL} Set the key that turns them on (such as attention_bias), or take them out."
    return "", ""


def _type_problem(types: Mapping[str, str], *, scaled: bool) -> str:
    """What is wrong with the types of the model's own weights; empty where nothing is."""
    for name, kind in types.items():
        if kind[0] in "IU":
            return f"{name} holds whole numbers ({kind})."
        if kind.startswith(FEW_BITS) and not scaled:
            return f"{name} holds numbers of few bits ({kind}), and config.json does not say how they are scaled."
    return ""


def refuse_quantized(config: PreTrainedConfig, location: str) -> None:
    """Raise UserError where a config says that its weights are quantized; once they have been made floats, as some
    kinds are when they are loaded, it no longer does."""
    keys: Any = getattr(config, "quantization_config", None)
    if keys is None:
        return
    kind = keys.get("quant_method") if isinstance(keys, Mapping) else getattr(keys, "quant_method", "")
    kind = getattr(kind, "value", kind)
    raise UserError(f"is quantized by its config.json ({kind}), and such weights cannot be trained.",
                    location=location, hint="Take the model that it was made from; where its files hold plain numbers, "
                    "take quantization_config out of config.json.")  # fmt: skip


def _is_inside(module: PreTrainedModel, name: str) -> bool:
    """Whether a weight of this name would belong to a part that the model computes: to one of its layers, or to a part
    with weights of its own, such as the output layer."""
    parts = dict(module.named_modules())
    for full in (name, f"{module.base_model_prefix}.{name}"):
        layer, above = _layer(full), full.rpartition(".")[0]
        if layer != full and layer.rstrip(".") in parts:
            return True
        if above in parts and next(parts[above].parameters(recurse=False), None) is not None:
            return True
    return False


def _pattern(name: str) -> str:
    """A weight's name without the numbers of layers and experts."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _layer(name: str) -> str:
    """The beginning of a weight's name up to the number of its layer."""
    return name[: match.end()] if (match := re.search(r"\.\d+(?=\.)", name)) else name


def _shape(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))

"""Models from a folder, the hub or memory, fit to be trained. Held by tests/model/test_weights.py and tests/corpus."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging
from transformers.utils.hub import cached_file

from preftune.errors import UserError, third_party_message
from preftune.model.adapter_files import AdapterFiles, adapter_at, base_of
from preftune.model.as_made import has_adapter_layers
from preftune.model.files_fit import mismatch, names_left_out, refuse_quantized, some_of
from preftune.model.quantized import QUANTIZED, loading, make_exact
from preftune.model.weights import SCORE
from preftune.trust import refuse_code, refuse_hub_code, refuse_unnamed

logging.disable_progress_bar()  # progress is shown in one line, which is ours
logging.set_verbosity_error()  # and problems of a model folder are our errors
getLogger("bitsandbytes").setLevel("ERROR")  # peft imports it where it is, and it misses a kernel that is not used
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Loaded(NamedTuple):
    """module: in evaluation mode; remarks: kind of event -> sentence, details, of what is odd about its files."""

    module: PreTrainedModel
    remarks: dict[str, tuple[str, dict[str, object]]]


def load_model(
    path: str | PreTrainedModel, *, revision: str | None, weights: str, device: torch.device, location: str,
    compute: str = "float32", scores: bool = False, known: Collection[str] = (),
) -> Loaded:  # fmt: skip
    """A causal language model in evaluation mode, so without dropout, with parameters of type `weights` on the device.

    weights: a type, or one of `QUANTIZED`, whose products and other parts are of type `compute`. path: a folder, a hub
    name, or a model that is loaded already, which is changed in place: its weights are the ones that training goes on
    with. location: the key that names it, for errors. scores: it is one with a score in place of logits
    (`scalar.load_scorer`). known: names of weights in its files that the caller reads. Raises UserError.
    """
    left_out: list[str] = []
    remarks: dict[str, tuple[str, dict[str, object]]] = {}
    if isinstance(path, PreTrainedModel):
        module = path
        _refuse_loaded(module, weights, location, scores=scores)
        if other := {str(p.dtype).partition(".")[2] for p in module.parameters()} - {weights}:
            text = f"the weights of the loaded model are in {', '.join(sorted(other))}, and become {weights} in place"
            remarks["loaded_type"] = (text, {})
        for parameter in module.parameters():  # but not the buffers: rotary angles stay in fp32
            parameter.data = parameter.data.to(DTYPES[weights])
    else:
        if (adapter := adapter_at(path, revision, location)) is not None:
            adapter.tell_base(weights)
        options = loading(weights, DTYPES[compute], device) if weights in QUANTIZED else {"dtype": DTYPES[weights]}
        module, left_out = _from_pretrained(path, revision, options, location, scores=scores, known=known)
        left_out = [name for name in left_out if name not in known]
        location = f"{location}: {path}"
    if weights not in QUANTIZED:  # those are there already
        module = module.to(device)  # pyright: ignore[reportArgumentType]  a GPU looks through weights at once
    broken = next((name for name, p in module.named_parameters() if not bool(torch.isfinite(p).all())), None)
    if broken:
        raise UserError(f"{broken} holds NaN or infinity.", location=location)
    if left_out:
        text = (
            f"{len(left_out)} weights of the model's files are no part of the language model that is trained, and the "
            f"export will lack them: {some_of(left_out)}"
        )
        remarks["weights_left_out"] = (text, {"names": left_out})
    if empty := [name for name, p in module.named_parameters() if p.dim() > 1 and not bool(p.any())]:
        remarks["weights_of_zero"] = (f"all numbers are 0 in {some_of(empty)}", {"names": empty})
    module.eval()
    if weights in QUANTIZED:
        text = f"what the policy is held against is the model in {weights}, not the one of the files"
        remarks["quantized"] = (text, {})
        make_exact(module)
    return Loaded(module, remarks)


def _refuse_loaded(module: PreTrainedModel, weights: str, location: str, *, scores: bool) -> None:
    """Raise UserError where a model that is loaded already is no model to begin from."""
    if not scores and module.get_output_embeddings() is None:
        raise UserError(f"{type(module).__name__} is no causal language model.", location=location)
    if has_adapter_layers(module):
        raise UserError("this model has an adapter, or the layers of one that was deleted.", location=location,
                        hint="Take it out by preftune.unload(model); adapter.path goes on from one that was "
                        "saved.")  # fmt: skip
    if any(tensor.is_inference() for tensor in (*module.parameters(), *module.buffers())):
        raise UserError("this model was made in torch.inference_mode, and has no gradients.", location=location)
    if weights in QUANTIZED or not all(p.is_floating_point() for p in module.parameters()):
        raise UserError("a loaded model cannot be quantized, or have been.", location=location,
                        hint="Give the folder or the name of the model.")  # fmt: skip


def _from_pretrained(
    path: str, revision: str | None, options: Mapping[str, Any], location: str, *, scores: bool,
    known: Collection[str] = (),
) -> tuple[PreTrainedModel, list[str]]:  # fmt: skip
    """The model, and the weights of its files that are no part of it."""
    if (adapter := adapter_at(path, revision, location)) is not None:
        if adapter.of_scores:
            raise _is_reward_model(f"{location}: {path}")
        return _with_adapter(adapter, options, location)
    source, folder = source_of(path, revision, location), Path(path).expanduser()
    config = load_config(path, revision, location)
    location = f"{location}: {path}"
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        hint = "Weights in pickle files are not read; save the model again as safetensors."
        raise UserError("has no *.safetensors file.", location=location, hint=hint)
    if scores:
        config.num_labels = 1
    family = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    types, scaled = types_in_files(source, revision), getattr(config, "quantization_config", None) is not None
    if "quantization_config" in options:
        refuse_quantized(config, location)
    try:
        module, info = family.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            source,
            config=config,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **options,
        )
    except Exception as error:  # transformers raises many kinds; each means that this model cannot be used
        raise UserError(f"cannot be loaded: {third_party_message(error)}", location=location) from error
    if not scores and SCORE in types.keys() - module.state_dict().keys():
        raise _is_reward_model(location)
    left_out = names_left_out(module, info["unexpected_keys"], types)
    problem, hint = mismatch(module, info, types, [name for name in left_out if name not in known], scaled=scaled)
    if problem:
        raise UserError(problem, location=location, hint=hint)
    if "quantization_config" not in options:
        refuse_quantized(module.config, location)
    return module, left_out


def _with_adapter(
    adapter: AdapterFiles, options: Mapping[str, Any], location: str
) -> tuple[PreTrainedModel, list[str]]:
    """The base of an adapter with it, and the weights of the base's files that are no part of it."""
    from preftune.model.put_adapter import load_adapter  # peft is imported where it is needed

    module, left_out = _from_pretrained(base_of(adapter, location), adapter.revision, options, location, scores=False)
    load_adapter(module, adapter, location)
    return module, left_out


def _is_reward_model(location: str) -> UserError:
    return UserError(f"is a reward model (it holds {SCORE}) and no language model.", location=location,
                     hint='Those are for objective = "reward" and `preftune score --reward`.')  # fmt: skip


def types_in_files(source: str, revision: str | None) -> dict[str, str]:
    """The name of each tensor in the files of a model, and its type as safetensors spells it."""
    types: dict[str, str] = {}
    for path in _weight_files(source, revision):
        with safe_open(path, "pt") as tensors:
            types |= {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return types


def tensors_in_files(source: str, revision: str | None, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Those of the named tensors that the files of a model have."""
    read: dict[str, torch.Tensor] = {}
    for path in _weight_files(source, revision):
        with safe_open(path, "pt") as tensors:
            read |= {name: tensors.get_tensor(name) for name in names if name in tensors.keys()}  # noqa: SIM118
    return read


def _weight_files(source: str, revision: str | None) -> list[Path]:
    file = cached_file(source, "config.json", revision=revision)
    return sorted(Path(file).parent.glob("*.safetensors")) if file else []


def load_config(path: str, revision: str | None, location: str) -> PreTrainedConfig:
    """The model's config alone, without its weights; of an adapter that of its base. Raises UserError where it is of no
    causal language model."""
    if (adapter := adapter_at(path, revision, location)) is not None:
        return load_config(base_of(adapter, location), adapter.revision, location)
    source = source_of(path, revision, location)
    location = f"{location}: {path}"
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:
        nowhere = "There is no such folder here, and no such model on the hub was reached."
        hint = "" if Path(source).is_dir() else nowhere
        raise UserError(f"cannot be read: {third_party_message(error)}", location=location, hint=hint) from error
    config._attn_implementation = "eager"  # else what the file names wins, which may not be installed
    if source == path:
        refuse_hub_code(path, revision, location)  # what was not on this machine before
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return config
    parts = sorted(name.removesuffix("_config") for name in config.sub_configs)
    if "text" in parts:
        text = f"{config.model_type} is a model for more than text ({', '.join(parts)}), which is not supported."
        raise UserError(text, location=location, hint="Save its text model as a folder of its own.")
    raise UserError(f"{config.model_type} is no causal language model.", location=location)


def source_of(path: str, revision: str | None, location: str) -> str:
    """What transformers is asked for: a folder that asks for no code, or a name of the hub."""
    refuse_unnamed(path, location)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if folder.exists() or path.startswith((".", "/", "~")):
            raise UserError("is not the folder of a model.", location=f"{location}: {path}")
        refuse_hub_code(path, revision, f"{location}: {path}")
        return path
    refuse_code(folder, location)
    return str(folder)

"""Models from a folder, the hub or memory, fit to be trained. Held by tests/model/test_weights.py and tests/corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from preftune.errors import UserError, third_party_message
from preftune.trust import refuse_code, refuse_unnamed

logging.disable_progress_bar()  # progress is shown in one line, which is ours
logging.set_verbosity_error()  # and problems of a model folder are our errors
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    path: str | PreTrainedModel, *, revision: str | None, weights: str, device: torch.device, location: str
) -> PreTrainedModel:
    """A causal language model in evaluation mode, so without dropout, with its parameters of type `weights` on the device.

    path: a folder, a hub name, or a model that is loaded already, which is changed in place: its weights are the ones
    that training goes on with. location: the key that names it, for errors. Raises UserError.
    """
    if isinstance(path, PreTrainedModel):
        module = path
        if module.get_output_embeddings() is None:
            raise UserError(f"{type(module).__name__} is no causal language model.", location=location)
        for parameter in module.parameters():  # but not the buffers: rotary angles stay in fp32
            parameter.data = parameter.data.to(DTYPES[weights])
    else:
        module = _from_pretrained(path, revision, DTYPES[weights], location)
        location = f"{location}: {path}"
    broken = next((name for name, p in module.named_parameters() if not bool(torch.isfinite(p).all())), None)
    if broken:
        raise UserError(f"{broken} holds NaN or infinity.", location=location)
    return module.to(device).eval()  # pyright: ignore[reportArgumentType]


def _from_pretrained(path: str, revision: str | None, dtype: torch.dtype, location: str) -> PreTrainedModel:
    source, folder = _source(path, location), Path(path).expanduser()
    location = f"{location}: {path}"
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        hint = "Weights in pickle files are not read; save the model again as safetensors."
        raise UserError("has no *.safetensors file.", location=location, hint=hint)
    if not folder.is_dir() and (folder.exists() or path.startswith((".", "/", "~"))):
        raise UserError("is not the folder of a model.", location=location)
    try:
        module, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            source,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except Exception as error:  # transformers raises many kinds; each means that this model cannot be used
        raise UserError(f"cannot be loaded: {third_party_message(error)}", location=location) from error
    problem, hint = _mismatch(info)
    if problem:
        raise UserError(problem, location=location, hint=hint)
    return module


def _mismatch(info: Mapping[str, Iterable]) -> tuple[str, str]:
    """Why weights and config.json are not of one model, and a hint; empty where they are."""
    for name, size, expected in sorted(info["mismatched_keys"]):
        text = f"{name} is {_shape(size)} in its weights, but {_shape(expected)} by its config.json."
        return text, "Is it the config of another model?"
    if missing := sorted(info["missing_keys"]):
        names = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        return f"has no weights for {names}.", "Not the folder of a causal language model?"
    if unexpected := [key for key in info["unexpected_keys"] if "layers." in key]:
        text = f"holds weights that its config.json has no place for, such as {min(unexpected)}."
        return text, "Is it the config of another model?"
    return "", ""


def load_config(path: str, revision: str | None, location: str) -> PreTrainedConfig:
    """The model's config alone, without its weights."""
    source = _source(path, location)
    try:
        return AutoConfig.from_pretrained(source, revision=revision)
    except Exception as error:
        raise UserError(f"cannot be read: {third_party_message(error)}", location=f"{location}: {path}") from error


def _source(path: str, location: str) -> str:
    """What transformers is asked for: a folder that asks for no code, or a name of the hub."""
    refuse_unnamed(path, location)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    refuse_code(folder, location)
    return str(folder)


def _shape(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


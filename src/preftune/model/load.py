"""Models from a folder or the hub, and back to a folder that transformers loads elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from preftune.errors import UserError, third_party_message
from preftune.files import Folder
from preftune.trust import refuse_code, refuse_unnamed

logging.disable_progress_bar()  # one line of progress is ours to show
logging.set_verbosity_error()  # and what is wrong with a model folder is ours to tell
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    path: str, *, revision: str | None, weights: str, device: torch.device, location: str
) -> PreTrainedModel:
    """A causal language model in evaluation mode, dropout off. where: the key that named it, for errors."""
    refuse_unnamed(path, location)
    folder = Path(path).expanduser()
    if folder.is_dir():
        refuse_code(folder, location)
        if not list(folder.glob("*.safetensors")):
            raise UserError(
                "has no *.safetensors file.",
                location=f"{location}: {path}",
                hint="Weights in pickle files are not read; save the model again as safetensors.",
            )
    elif folder.exists() or path.startswith((".", "/", "~")):
        raise UserError("is not the folder of a model.", location=f"{location}: {path}")
    try:
        module, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            str(folder) if folder.is_dir() else path,
            revision=revision,
            dtype=DTYPES[weights],
            use_safetensors=True,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except Exception as error:  # transformers raises many kinds; each means that this model cannot be used
        raise UserError(f"cannot be loaded: {third_party_message(error)}", location=f"{location}: {path}") from error
    for name, held, wanted in sorted(info["mismatched_keys"]):
        raise UserError(f"{name} is {_shape(held)} in its weights, but {_shape(wanted)} by its config.json.",
                        location=f"{location}: {path}", hint="Is it the config of another model?")  # fmt: skip
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"has no weights for {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}.",
            location=f"{location}: {path}",
            hint="Not the folder of a causal language model?",
        )
    odd = [key for key in info["unexpected_keys"] if "layers." in key]
    if odd:
        raise UserError(
            f"holds weights that its config.json has no place for, such as {min(odd)}.",
            location=f"{location}: {path}",
            hint="Is it the config of another model?",
        )
    broken = next((name for name, p in module.named_parameters() if not bool(torch.isfinite(p).all())), None)
    if broken:
        raise UserError(f"{broken} holds NaN or infinity.", location=f"{location}: {path}")
    switch_dropout_off(module)
    return module.to(device).eval()


def load_config(path: str, revision: str | None, location: str) -> PreTrainedConfig:
    """The model's config alone, without its weights."""
    refuse_unnamed(path, location)
    folder = Path(path).expanduser()
    if folder.is_dir():
        refuse_code(folder, location)
    try:
        return AutoConfig.from_pretrained(str(folder) if folder.is_dir() else path, revision=revision)
    except Exception as error:
        raise UserError(f"cannot be read: {third_party_message(error)}", location=f"{location}: {path}") from error


def _shape(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def switch_dropout_off(module: PreTrainedModel) -> None:
    """Every dropout, the functional ones in attention included: log-probs must not depend on luck."""
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        for name, value in vars(part).items():
            if "dropout" in name and isinstance(value, float):
                setattr(part, name, 0.0)


def weights_digest(module: PreTrainedModel) -> str:
    """SHA-256 of everything that decides the model's log-probabilities: names, shapes, types, bytes, config."""
    told = hashlib.sha256()
    config = module.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "_attn_implementation", "use_cache", "dtype"):
        config.pop(name, None)
    told.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        told.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        told.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return told.hexdigest()


def export(into: Folder, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The plain Hugging Face layout, in a folder being built."""
    name = str(module.config._attn_implementation)
    module.set_attn_implementation("eager")  # ours is not known elsewhere
    module.save_pretrained(into.path)
    module.set_attn_implementation(name)
    tokenizer.save_pretrained(into.path)

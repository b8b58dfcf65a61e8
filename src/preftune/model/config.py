"""[model] of a configuration."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

from preftune.table import Count, FromPython, Table, about

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    ModelPath = str | PreTrainedModel
    TokenizerPath = str | PreTrainedTokenizerBase
else:
    ModelPath = TokenizerPath = str  # what a file may hold


def _is_a(value: object, name: str) -> bool:
    """Whether it is an instance of this class of transformers, which is imported if there is one."""
    transformers = sys.modules.get("transformers")
    return not isinstance(value, str) and transformers is not None and isinstance(value, getattr(transformers, name))


def _of_peft(value: object, name: str) -> bool:
    """Whether it is an instance of this class of peft."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(value, getattr(peft, name))


def _instead_of_peft_model(value: object) -> str:
    """How to go on from an adapter that peft holds around a model."""
    if not _of_peft(value, "PeftModel"):
        return ""
    return "Save it by save_pretrained(FOLDER), and write Model(path=BASE) and Adapter(path=FOLDER)."


def _instead_of_peft_config(value: object) -> str:
    """The same adapter as it is written here, and the keys of it that have no like here."""
    if not _of_peft(value, "LoraConfig"):
        return ""
    keys = {here: getattr(value, there) for there, here in OF_PEFT_CONFIG.items()}
    keys["kind"] = "dora" if keys["kind"] else None
    keys["scaling"] = "root" if keys["scaling"] else None
    keys["start"] = None if keys["start"] is True else keys["start"]
    targets = keys["targets"] or "all-linear"
    keys["targets"] = tuple(sorted(targets)) if isinstance(targets, set) else targets
    words = ", ".join(f"{key}={word!r}" for key, word in keys.items() if word is not None)
    usual = type(value)()
    differing = sorted(key for key in vars(usual) if getattr(value, key) != getattr(usual, key))
    lacking = [key for key in differing if key not in (*OF_PEFT_CONFIG, *NO_CHOICE)]
    return f"Write Adapter({words})." + (f" There is no {', '.join(lacking)} here." if lacking else "")


OF_PEFT_CONFIG = {
    "r": "rank", "lora_alpha": "alpha", "target_modules": "targets", "use_dora": "kind", "use_rslora": "scaling",
    "init_lora_weights": "start", "modules_to_save": "train_also",
}  # fmt: skip
"""Key of peft's LoraConfig -> key of [adapter]."""
NO_CHOICE = ("task_type", "inference_mode", "base_model_name_or_path", "revision", "peft_type", "peft_version")
ADAPTERS = {"lora": "adapter.rank=16", "dora": "adapter.kind=dora", "qlora": "adapter.rank=16 model.weights=nf4"}
"""What other libraries have in place of the table -> what to write here."""
OF_PEFT = FromPython("Adapter(...)", lambda _: False, instead=_instead_of_peft_config)
MODEL = FromPython(
    "a loaded model of transformers", lambda value: _is_a(value, "PreTrainedModel"), instead=_instead_of_peft_model
)
TOKENIZER = FromPython("a loaded tokenizer of transformers", lambda value: _is_a(value, "PreTrainedTokenizerBase"))
OTHER_TOKENIZER = "Folder or hub name of the tokenizer, if it is not the model's."
LAYOUT = "auto: share prefixes if the model allows it; trie: always share; padded: one row a response."
WEIGHTS = "Type in which weights are kept; auto: float32, or the products' under an adapter; nf4, int8: few bits."
COMPUTE = "Type of the matrix products; auto: bfloat16 on a GPU that has it, else float32."
TRAINABLE = "Patterns of the names of weights that are trained, such as *.mlp.*; all if not given."
PEERS_WEIGHTS = (
    "torch_dtype dtype load_in_4bit load_in_8bit quantization_config quantization_bit quantization_method "
    "bnb_4bit_quant_type pure_bf16"
)
PEERS_TRAINABLE = (
    "freeze unfreeze unfrozen_parameters trainable_parameters freeze_layers freeze_trainable_layers "
    "freeze_trainable_modules freeze_extra_modules"
)
PEERS_CHECKPOINTING = "gradient_checkpointing activation_checkpointing disable_gradient_checkpointing"
Precision = Literal["auto", "float32", "bfloat16"]


class Model(Table, frozen=True):
    """[model] The policy: the model that is trained."""

    path: Annotated[
        ModelPath,
        about(
            "Folder or hub name of the model.",
            also="model_name_or_path model_name base_model",
            location=True,
            python=MODEL,
        ),
    ] = ""
    revision: Annotated[
        str | None,
        about("Branch, tag or commit of a hub model.", also="model_revision revision_of_model", location=True),
    ] = None
    tokenizer: Annotated[
        TokenizerPath | None,
        about(
            OTHER_TOKENIZER,
            also="tokeniser tokenizer_name tokenizer_config processing_class",
            location=True,
            python=TOKENIZER,
        ),
    ] = None
    weights: Annotated[
        Precision | Literal["nf4", "int8"],
        about(WEIGHTS, also=PEERS_WEIGHTS),
    ] = "auto"
    compute: Annotated[Precision, about(COMPUTE, also="bf16 bfloat16 mixed_precision")] = "auto"
    trainable: Annotated[
        tuple[str, ...] | None,
        about(TRAINABLE, also=PEERS_TRAINABLE),
    ] = None
    checkpointing: Annotated[
        bool, about("Recompute activations in the backward pass to save memory.", also=PEERS_CHECKPOINTING)
    ] = False
    layout: Annotated[Literal["auto", "trie", "padded"], about(LAYOUT)] = "auto"


TARGETS = 'Names of the layers that get one, or "all-linear"; experts by the name of their parameter.'
PEERS_TARGETS = (
    "target_modules target_parameters lora_target_modules lora_target_parameters lora_target_linear lora_target"
)
PEERS_PATH = "adapter_name_or_path lora_model_dir"
PEERS_WHOLE = "modules_to_save lora_modules_to_save additional_target"


class Adapter(Table, frozen=True):
    """[adapter] Train a low-rank adapter (LoRA, arXiv 2106.09685) beside the model's weights, which stay."""

    kind: Annotated[
        Literal["lora", "dora"],
        about("dora learns the size of each row apart (arXiv 2402.09353).", also="use_dora peft_use_dora"),
    ] = "lora"
    rank: Annotated[Count, about("Rank of the adapter's matrices.", also="r lora_r lora_rank")] = 16
    alpha: Annotated[float, about("Scale of what the adapter adds; see scaling.", also="lora_alpha", gt=0)] = 32
    scaling: Annotated[
        Literal["rank", "root"],
        about(
            "Divide alpha by the rank, or by its root (rsLoRA, arXiv 2312.03732).", also="use_rslora peft_use_rslora"
        ),
    ] = "rank"
    targets: Annotated[Literal["all-linear"] | tuple[str, ...], about(TARGETS, also=PEERS_TARGETS)] = "all-linear"
    start: Annotated[
        Literal["zero", "gaussian", "orthogonal", "pissa", "olora"],
        about("How it begins: each begins as the model.", also="init_lora_weights peft_init_lora_weights pissa_init"),
    ] = "zero"
    ratio: Annotated[
        float, about("Rate of B over that of A (LoRA+, arXiv 2402.12354).", also="loraplus_lr_ratio", gt=0)
    ] = 1.0
    train_also: Annotated[tuple[str, ...], about("Parts that are trained whole beside it.", also=PEERS_WHOLE)] = ()
    path: Annotated[
        str | None,
        about("Go on from the adapter in this folder or of this hub name.", also=PEERS_PATH, location=True),
    ] = None


SHARD = "What ranks divide: nothing; moments (step); weights and gradients too (layer). auto: the first that fits."


class Ranks(Table, frozen=True):
    """[ranks] Several processes that train one model, under torchrun."""

    shard: Annotated[
        Literal["auto", "none", "step", "layer"], about(SHARD, also="fsdp fsdp_config zero deepspeed", identity=False)
    ] = "auto"

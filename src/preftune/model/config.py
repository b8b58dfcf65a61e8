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


MODEL = FromPython("a loaded model of transformers", lambda value: _is_a(value, "PreTrainedModel"))
TOKENIZER = FromPython("a loaded tokenizer of transformers", lambda value: _is_a(value, "PreTrainedTokenizerBase"))
OTHER_TOKENIZER = "Folder or hub name of the tokenizer, if it is not the model's."
LAYOUT = "auto: share prefixes if the model allows it; trie: always share; padded: one row a response."
WEIGHTS = "Type in which weights are kept; auto: float32, or the products' under an adapter; nf4, int8: few bits."
COMPUTE = "Type of the matrix products; auto: bfloat16 on a GPU that has it, else float32."
TRAINABLE = "Patterns of the names of weights that are trained, such as *.mlp.*; all if not given."
Precision = Literal["auto", "float32", "bfloat16"]


class Model(Table, frozen=True):
    """[model] The policy: the model that is trained."""

    path: Annotated[
        ModelPath,
        about("Folder or hub name of the model.", also="model_name_or_path model_name", location=True, python=MODEL),
    ] = ""
    revision: Annotated[str | None, about("Branch, tag or commit of a hub model.", location=True)] = None
    tokenizer: Annotated[
        TokenizerPath | None,
        about(OTHER_TOKENIZER, also="tokeniser tokenizer_name processing_class", location=True, python=TOKENIZER),
    ] = None
    weights: Annotated[
        Precision | Literal["nf4", "int8"],
        about(WEIGHTS, also="torch_dtype dtype load_in_4bit load_in_8bit quantization_config quantization_bit"),
    ] = "auto"
    compute: Annotated[Precision, about(COMPUTE, also="bf16 mixed_precision")] = "auto"
    trainable: Annotated[
        tuple[str, ...] | None,
        about(TRAINABLE, also="freeze unfreeze unfrozen_parameters trainable_parameters freeze_layers"),
    ] = None
    checkpointing: Annotated[
        bool, about("Recompute activations in the backward pass to save memory.", also="gradient_checkpointing")
    ] = False
    layout: Annotated[Literal["auto", "trie", "padded"], about(LAYOUT, also="padding_free packing")] = "auto"


TARGETS = 'Names of the layers that get one, or "all-linear"; experts by the name of their parameter.'


class Adapter(Table, frozen=True):
    """[adapter] Train a low-rank adapter (LoRA, arXiv 2106.09685) beside the model's weights, which stay."""

    kind: Annotated[
        Literal["lora", "dora"],
        about(
            "dora learns the size of each row apart (arXiv 2402.09353).",
            also="use_dora lora peft peft_config use_peft finetuning_type",
        ),
    ] = "lora"
    rank: Annotated[Count, about("Rank of the adapter's matrices.", also="r lora_r lora_rank")] = 16
    alpha: Annotated[float, about("Scale of what the adapter adds; see scaling.", also="lora_alpha", gt=0)] = 32
    scaling: Annotated[
        Literal["rank", "root"],
        about("Divide alpha by the rank, or by its root (rsLoRA, arXiv 2312.03732).", also="use_rslora"),
    ] = "rank"
    targets: Annotated[
        Literal["all-linear"] | tuple[str, ...], about(TARGETS, also="target_modules lora_target_modules lora_target")
    ] = "all-linear"
    start: Annotated[
        Literal["zero", "gaussian", "orthogonal", "pissa", "olora"],
        about("How it begins: each begins as the model.", also="init_lora_weights"),
    ] = "zero"
    ratio: Annotated[
        float, about("Rate of B over that of A (LoRA+, arXiv 2402.12354).", also="loraplus_lr_ratio", gt=0)
    ] = 1.0
    train_also: Annotated[
        tuple[str, ...], about("Parts that are trained whole beside it.", also="modules_to_save lora_modules_to_save")
    ] = ()
    path: Annotated[
        str | None, about("Go on from the adapter in this folder or of this hub name.", also="adapter_name_or_path",
                          location=True)
    ] = None  # fmt: skip


SHARD = "What ranks divide: nothing; moments (step); weights and gradients too (layer). auto: the first that fits."


class Ranks(Table, frozen=True):
    """[ranks] Several processes that train one model, under torchrun."""

    shard: Annotated[
        Literal["auto", "none", "step", "layer"], about(SHARD, also="fsdp zero deepspeed", identity=False)
    ] = "auto"

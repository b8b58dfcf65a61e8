"""[model] of a configuration."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

from preftune.table import FromPython, Table, about

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
WEIGHTS = "Type in which weights are kept; auto: float32."
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
    weights: Annotated[Precision, about(WEIGHTS, also="torch_dtype dtype")] = "auto"
    compute: Annotated[Precision, about(COMPUTE, also="bf16 mixed_precision")] = "auto"
    trainable: Annotated[
        tuple[str, ...] | None,
        about(TRAINABLE, also="freeze unfreeze unfrozen_parameters trainable_parameters freeze_layers"),
    ] = None
    checkpointing: Annotated[
        bool, about("Recompute activations in the backward pass to save memory.", also="gradient_checkpointing")
    ] = False
    layout: Annotated[Literal["auto", "trie", "padded"], about(LAYOUT, also="padding_free packing")] = "auto"


SHARD = "What ranks divide: nothing; moments (step); weights and gradients too (layer). auto: the first that fits."


class Ranks(Table, frozen=True):
    """[ranks] Several processes that train one model, under torchrun."""

    shard: Annotated[
        Literal["auto", "none", "step", "layer"], about(SHARD, also="fsdp zero deepspeed", identity=False)
    ] = "auto"

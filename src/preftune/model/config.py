"""[model] of a configuration."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from preftune.table import FromPython, Table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Path = str | PreTrainedModel
    TokenizerPath = str | PreTrainedTokenizerBase
else:  # what a file may hold
    Path = TokenizerPath = str


def is_loaded_model(value: object) -> bool:
    """Whether it is a model of transformers, which then is imported already."""
    transformers = sys.modules.get("transformers")
    return not isinstance(value, str) and transformers is not None and isinstance(value, transformers.PreTrainedModel)


def is_loaded_tokenizer(value: object) -> bool:
    """Whether it is a tokenizer of transformers."""
    transformers = sys.modules.get("transformers")
    if isinstance(value, str) or transformers is None:
        return False
    return isinstance(value, transformers.PreTrainedTokenizerBase)


class Model(Table, frozen=True):
    """[model] The policy: the model that is trained."""

    path: Annotated[
        Path,
        Meta(
            description="Folder or hub name of the model to tune.",
            extra={
                "location": True,
                "also": ("model_name_or_path", "pretrained_model_name_or_path", "model_name", "base_model"),
                "python": FromPython("a loaded model of transformers", is_loaded_model),
            },
        ),
    ] = ""
    revision: Annotated[
        str | None,
        Meta(
            description="Branch, tag or commit of a hub model.", extra={"location": True, "also": ("model_revision",)}
        ),
    ] = None
    tokenizer: Annotated[
        TokenizerPath | None,
        Meta(
            description="Folder or hub name of the tokenizer, if it is not the model's.",
            extra={
                "location": True,
                "also": ("tokeniser", "tokenizer_name_or_path", "tokenizer_name", "processing_class"),
                "python": FromPython("a loaded tokenizer of transformers", is_loaded_tokenizer),
            },
        ),
    ] = None
    weights: Annotated[
        Literal["float32", "bfloat16"],
        Meta(
            description="Type in which weights and optimizer state are kept.",
            extra={"also": ("torch_dtype", "dtype", "model_dtype")},
        ),
    ] = "float32"
    compute: Annotated[
        Literal["float32", "bfloat16"],
        Meta(
            description="Type of the matrix products; bfloat16 halves time on a GPU.",
            extra={"also": ("bf16", "fp16", "mixed_precision")},
        ),
    ] = "float32"
    checkpointing: Annotated[
        bool,
        Meta(
            description="Recompute activations in the backward pass to save memory.",
            extra={"also": ("gradient_checkpointing", "activation_checkpointing")},
        ),
    ] = False
    layout: Annotated[
        Literal["auto", "trie", "padded"],
        Meta(
            description="auto: share prefixes if the model allows it; trie: always share; padded: one row a response.",
            extra={"also": ("padding_free", "packing")},
        ),
    ] = "auto"

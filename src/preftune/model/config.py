"""[model] of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from preftune.table import Table


class Model(Table, frozen=True):
    """[model] The policy: the model that is trained."""

    path: Annotated[str, Meta(description="Folder or hub name of the model to tune.")] = ""
    revision: Annotated[str | None, Meta(description="Branch, tag or commit of a hub model.")] = None
    tokenizer: Annotated[
        str | None, Meta(description="Folder or hub name of the tokenizer, where not the model's.")
    ] = None
    weights: Annotated[
        Literal["float32", "bfloat16"], Meta(description="Type in which weights and optimizer state are kept.")
    ] = "float32"
    compute: Annotated[
        Literal["float32", "bfloat16"], Meta(description="Type of the matrix products; bfloat16 halves time on a GPU.")
    ] = "float32"
    checkpointing: Annotated[bool, Meta(description="Recompute activations in the backward pass to save memory.")] = (
        False
    )
    layout: Annotated[
        Literal["auto", "trie", "padded"],
        Meta(description="auto: share prefixes where the model allows it; trie: insist; padded: one row a response."),
    ] = "auto"

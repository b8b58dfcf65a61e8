"""Which token fills up a batch of a reward model: never one with which a response may end.

transformers reads a sequence's score at the rightmost token that is not the pad. Where the pad is the end token, as
trainers have it by default, it reads the token before the end, and such a model cannot see whether a response ended.
Held by tests/tokens/test_pad.py.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from preftune.errors import UserError
from preftune.tokens.groups import TokenGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEW = "<|pad|>"
MEANT = ("pad", "reserved", "unused")  # parts of the names of tokens that stand for nothing


def with_pad(
    tokenizer: PreTrainedTokenizerBase, groups: Sequence[TokenGroup], vocab: int, ends: Collection[int]
) -> tuple[PreTrainedTokenizerBase, str]:
    """A copy of the tokenizer whose pad no response ends with, and a sentence on it.

    In this order: its own pad; a special token of no meaning that is in no row; a new token, where the model has an id
    for it; the unknown token, where that is in no row. vocab: tokens that the model knows; ends: its end tokens.
    Raises UserError where there is none.
    """
    last = {int(response[-1]) for group in groups for response in group.responses}
    begin, end, unknown, own = (
        None if token is None else int(tokenizer.convert_tokens_to_ids(str(token)))  # pyright: ignore[reportArgumentType]
        for token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    )
    last |= {*ends, *(() if end is None else (end,))}
    if own is not None and own not in last and own < vocab:
        return copy.deepcopy(tokenizer), f"batches are filled up with {tokenizer.pad_token} ({own})"
    seen = last.union(*(ids.tolist() for group in groups for ids in group.parts))
    named = {begin, unknown}
    special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    free = {i: text for i, text in special.items() if i < vocab and i not in seen and i not in named}
    chosen = [text for word in MEANT for i, text in sorted(free.items()) if word in text.lower()]
    if not chosen and len(tokenizer) < vocab:
        chosen = [NEW]
    if not chosen and unknown is not None and unknown not in seen:
        chosen = [str(tokenizer.unk_token)]
    if not chosen:
        raise UserError(
            "the tokenizer has no token for filling up batches that is not one with which responses end.",
            location="model.tokenizer",
            hint="A reward model could not see an end. Give the tokenizer a pad_token of its own, and the model a row "
            "of embeddings for it (resize_token_embeddings).",
        )
    padded = copy.deepcopy(tokenizer)
    padded.add_special_tokens({"pad_token": chosen[0]})
    why = "it has no pad" if own is None else f"its own, {tokenizer.pad_token}, ends responses"
    text = f"the exported tokenizer fills up batches with {chosen[0]} ({padded.pad_token_id}), because {why}"
    return padded, text

"""The pad of a reward model is never a token with which a response ends."""

from __future__ import annotations

import pytest
from making import group
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from preftune.errors import UserError
from preftune.tokens.pad import NEW, with_pad

ROWS = [group([5, 6], [7, 2], [8, 9, 2])]
WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "<|reserved_3|>": 3, "<mark>": 4, **{f"w{i}": i for i in range(5, 12)}}


def tokenizer(*special: str, unk: str | None = "<unk>", **keys: str) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token=unk, **keys)


@pytest.mark.parametrize(
    ("made", "vocab", "pad", "sentence"),
    [
        (tokenizer(pad_token="<mark>"), 12, 4, "are filled up with <mark>"),
        (tokenizer("<|reserved_3|>", pad_token="</s>"), 12, 3, "because its own, </s>, ends responses"),
        (tokenizer("<|reserved_3|>"), 12, 3, "because it has no pad"),
        (tokenizer("<mark>"), 20, 12, f"with {NEW}"),
        (tokenizer(), 12, 0, "with <unk>"),
    ],
)
def test_it_is_chosen(made: PreTrainedTokenizerFast, vocab: int, pad: int, sentence: str) -> None:
    before = made.pad_token
    padded, text = with_pad(made, ROWS, vocab, [2])
    assert padded.pad_token_id == pad
    assert sentence in text
    assert made.pad_token == before, "the caller's is left alone"
    assert len(padded) <= vocab
    assert padded("w5 w6", add_special_tokens=False).input_ids == [5, 6]


def test_a_pad_that_ends_a_response_is_none() -> None:
    cut = [*ROWS, group([5], [6, 4], [7, 2])]
    assert with_pad(tokenizer(pad_token="<mark>"), cut, 12, [2])[0].pad_token_id == 0
    assert with_pad(tokenizer(pad_token="<mark>"), ROWS, 12, [2, 4])[0].pad_token_id == 0


def test_none_is_refused() -> None:
    with pytest.raises(UserError, match="no token for filling up batches") as error:
        with_pad(tokenizer(unk=None, pad_token="</s>"), ROWS, 12, [])
    assert "resize_token_embeddings" in str(error.value)

"""A language model small enough to be trained while one watches, untrained, in a plain folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preftune import files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = SPECIAL = ("<pad>", "<end>", "<unknown>")


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word with the space before it, so that ids go back to exactly the text they came from."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {word: place for place, word in enumerate([*SPECIAL, *words])}
    made = Tokenizer(models.WordLevel(known, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|[^\w\s]|\s"), behavior="isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def make_tiny(
    path: Path, words: Sequence[str], *, width: int = 64, layers: int = 2, positions: int = 64, seed: int = 0
) -> None:
    """Write a small untrained Llama that speaks `words` as the folder `path`; a folder already there is replaced.

    width: size of a hidden state; positions: longest text, in tokens. The weights follow from the seed.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from preftune.model.weights import WholeModel

    tokenizer = word_tokenizer(words)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=positions, tie_word_embeddings=True,
        pad_token_id=SPECIAL.index(PAD), bos_token_id=None, eos_token_id=SPECIAL.index(END),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = LlamaForCausalLM(config)
    with files.folder(path) as folder:
        WholeModel(module).export(folder, tokenizer)

"""An untrained language model in a model folder, small enough to train in a minute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preftune import folders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = SPECIAL = ("<pad>", "<end>", "<unknown>")


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word and the space before it, so that decoding gives exactly the encoded text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|[^\w\s]|\s"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def make_tiny(
    path: Path, words: Sequence[str], *, width: int = 64, layers: int = 2, positions: int = 64, seed: int = 0
) -> None:
    """Write a small untrained Llama with the vocabulary `words` into the folder `path`, which is replaced.

    width: size of a hidden state; positions: longest text, in tokens. The seed decides the weights.
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
    with folders.folder(path) as folder:
        WholeModel(module).export(folder, tokenizer)

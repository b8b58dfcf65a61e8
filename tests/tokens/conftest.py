"""Small tokenizers that show every habit of the large ones: byte pieces, a space put in front, tokens that join."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from preftune.rows.row import Message, Pair, Place, Prompt, Response

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = ["the cat sat on the mat and the dog sat on the cat", "what is the best way to ask a question", "user assistant"]


@pytest.fixture(scope="session")
def byte_level() -> Callable[..., PreTrainedTokenizerBase]:
    """Byte pieces, as GPT-2 and most chat models have them; nothing is added to a text."""

    def make(template: str | None = CHAT, **tokens: str | None) -> PreTrainedTokenizerBase:
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
        inner.train_from_iterator(TEXT, trainer)
        named = {"eos_token": "<|im_end|>", "bos_token": None, "additional_special_tokens": SPECIAL, **tokens}
        made = PreTrainedTokenizerFast(tokenizer_object=inner, **named)
        made.chat_template = template
        return made

    return make


@pytest.fixture(scope="session")
def sentence() -> PreTrainedTokenizerBase:
    """As SentencePiece: a space before any text, <s> before that, bytes for what is unknown, no template."""
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz.:", "▁t", "▁the", "at", "▁c", "▁cat"]
    vocab = {
        piece: k for k, piece in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces])
    }
    merges = [("▁", "t"), ("▁", "c"), ("a", "t"), ("▁c", "at")]
    inner = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def joining() -> PreTrainedTokenizerBase:
    """No borders of words: `ab` is one token, also where `a` ends a prompt and `b` begins a response."""
    vocab = {token: k for k, token in enumerate(["<unk>", "</s>", "a", "b", "c", "ab"])}
    inner = Tokenizer(models.BPE(vocab, [("a", "b")], unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def pair() -> Callable[..., Pair]:
    def make(
        prompt: Prompt = "the cat:", chosen: Response = " sat", rejected: Response = " ran", **more: object
    ) -> Pair:
        return Pair(prompt=prompt, chosen=chosen, rejected=rejected, place=Place("made.jsonl", 1), **more)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def chat(pair: Callable[..., Pair]) -> Callable[..., Pair]:
    """A pair of conversations; turns begin with the user's."""

    def make(*turns: str, chosen: str = "the mat", rejected: str = "the dog") -> Pair:
        said = tuple(Message("assistant" if k % 2 else "user", text) for k, text in enumerate(turns or ("what?",)))
        return pair(said, (Message("assistant", chosen),), (Message("assistant", rejected),))

    return make


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], str]:
    """Path of a file with this content."""

    def write(content: str, name: str = "template.jinja") -> str:
        (tmp_path / name).write_text(content)
        return str(tmp_path / name)

    return write

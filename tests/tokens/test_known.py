"""Tokenizers of few letters keep their begin token, and what they have no token for is told."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from preftune.errors import UserError
from preftune.rows.row import Message, Pair, Place
from preftune.tokens.tokenize import Tokenized, tokenize
from tests.tokens.conftest import CHAT

ADDED = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]


def of_letters(inner: Tokenizer, template: str | None = None) -> PreTrainedTokenizerBase:
    inner.add_special_tokens(ADDED)
    begin = ("<s>", inner.token_to_id("<s>"))
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[
        begin, ("</s>", inner.token_to_id("</s>"))])  # fmt: skip
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.chat_template = template
    return made


def vocabulary(*pieces: str) -> dict[str, int]:
    return {piece: k for k, piece in enumerate(pieces)}


def dna() -> Tokenizer:
    return Tokenizer(models.BPE(vocabulary(*"ACGT"), []))


def smiles() -> Tokenizer:
    """Pieces of several letters that have no token of their own."""
    inner = Tokenizer(models.BPE(vocabulary("C", "O", "Cl", "[C@@H]", "("), [], ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.Split(_pattern(r"\[.*?\]|Cl|."), "isolated")
    return inner


def protein() -> Tokenizer:
    inner = Tokenizer(models.WordLevel(vocabulary(*"MKV", "<unk>"), unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(_pattern("."), "isolated")
    return inner


def _pattern(written: str) -> object:
    from tokenizers import Regex

    return Regex(written)


def pair(prompt: str, chosen: str, rejected: str) -> Pair:
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected, place=Place("made", 1))


def pieces(done: Tokenized, tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    (group,) = done.groups
    return [tokenizer.convert_ids_to_tokens([*map(int, ids)]) for ids in (group.prompt, *group.responses)]


@pytest.mark.parametrize(
    ("inner", "prompt", "prompt_pieces"),
    [
        (dna(), "ACGT", [*"ACGT"]),
        (smiles(), "C[C@@H](Cl", ["C", "[C@@H]", "(", "Cl"]),
        (protein(), "MKV", [*"MKV"]),
    ],
)
def test_the_begin_token_is_found_without_a_token_for_a(
    inner: Tokenizer, prompt: str, prompt_pieces: list[str]
) -> None:
    tokenizer = of_letters(inner)
    done = tokenize([pair(prompt, prompt_pieces[0], prompt_pieces[-1])], tokenizer, max_tokens=50)
    assert pieces(done, tokenizer)[0] == ["<s>", *prompt_pieces]
    assert done.notes == []


def test_characters_without_a_token_are_told_and_many_are_refused() -> None:
    tokenizer = of_letters(dna())
    many = "ACGT" * 20
    done = tokenize([pair(f"{many}\nAC x GT", "GG", "CC")], tokenizer, max_tokens=500)
    (note,) = done.notes
    assert (note.reason, note.location) == ("token.dropped", "made:1")
    assert "have no token and are left out: 3 of 268, such as 'x'." in note.message
    with pytest.raises(UserError, match=r"has no token for .*% of the characters, such as 'x', 'y', 'z'"):
        tokenize([pair("AC xyz GT", "GG", "CC")], tokenizer, max_tokens=500)


def test_control_tokens_have_tokens_of_their_own() -> None:
    tokenizer = of_letters(dna(), CHAT.replace("m.role", "''").replace("assistant", ""))
    row = pair("", (Message("assistant", "GG"),), (Message("assistant", "CC"),))  # type: ignore[arg-type]
    done = tokenize([Pair(prompt=(Message("user", "AC"),), chosen=row.chosen, rejected=row.rejected, place=row.place)],
                    tokenizer, max_tokens=50)  # fmt: skip
    assert [note.reason for note in done.notes] == []
    assert pieces(done, tokenizer)[1] == ["G", "G", "<|im_end|>"]


def test_half_of_the_bytes_of_a_character_is_no_token_for_it() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    for missing, reasons in ((None, []), ("\u00a9", ["token.dropped"])):  # the second byte of e with an accent
        inner = Tokenizer(models.BPE(vocabulary(*(byte for byte in alphabet if byte != missing)), []))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        done = tokenize([pair("a prompt of some length, caf\u00e9", "yes", "no")], of_letters(inner), max_tokens=99)
        assert [note.reason for note in done.notes] == reasons


def test_what_a_tokenizer_writes_otherwise_is_not_dropped(sentence: PreTrainedTokenizerBase) -> None:
    inner = Tokenizer(models.BPE(vocabulary(*"abcde "), []))
    inner.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
    assert tokenize([pair("ABC d\u00e9", "a", "b")], of_letters(inner), max_tokens=50).notes == []
    assert tokenize([pair("the cat \u6771 \u2581", " a", " b")], sentence, max_tokens=50).notes == []


@pytest.mark.parametrize("model", [models.WordLevel, models.WordPiece])
def test_a_tokenizer_that_fails_at_unknown_words_is_an_error_of_the_user(model: type) -> None:
    inner = Tokenizer(model(vocabulary("C", "G"), unk_token="<none>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = of_letters(inner)
    assert pieces(tokenize([pair("C", " G", " C")], tokenizer, max_tokens=9), tokenizer)[0] == ["<s>", "C"]
    with pytest.raises(UserError, match=r"the tokenizer fails: .* no token for what it does not know"):
        tokenize([pair("C word", " G", " C")], tokenizer, max_tokens=9)

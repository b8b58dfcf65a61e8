"""What a tokenizer knows: a text to try it with, and the characters that it leaves out without a word.

A tokenizer of characters (DNA, proteins, SMILES) may have neither a token for a letter nor one for what it does not
know. Held by tests/tokens/test_known.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from preftune.errors import Problem, UserError
from preftune.rows.row import Place
from preftune.tokens.groups import TokenGroup

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_UNKNOWN = 0.1  # share from which the tokenizer is surely another model's
SPACE, REPLACEMENT = "\u2581", "\ufffd"  # SentencePiece's space; what stands for bytes that are no character


def known_text(tokenizer: Tokenizer, unknown: int | None) -> str:
    """A text that the tokenizer has tokens for: `a`, or else the first piece of its vocabulary that it reads.

    unknown: the id of its unknown token. "a" where it reads nothing at all.
    """
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    ids = sorted(tokenizer.get_vocab(with_added_tokens=False).values())
    pieces = (tokenizer.decode([id_], skip_special_tokens=False).strip() for id_ in ids)
    texts = (text for text in ("a", *pieces) if text and text not in added)
    return next((text for text in texts if _is_known(tokenizer, text, unknown)), "a")


def _is_known(tokenizer: Tokenizer, text: str, unknown: int | None) -> bool:
    ids = ids_of(tokenizer, text)
    return bool(ids) and unknown not in ids


def ids_of(tokenizer: Tokenizer, text: str) -> Sequence[int]:
    """The ids of a text, none where the tokenizer fails, as one of words does at a word that it does not know."""
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    except Exception:  # the tokenizers library has no class of its own
        return []


def unknown_tokens(groups: Sequence[TokenGroup], unknown: int) -> list[Problem]:
    """A note on unknown tokens, if there are any. Raises UserError where they are many."""
    counts = [sum(int((ids == unknown).sum()) for ids in group.parts) for group in groups]
    tokens, there = sum(group.tokens for group in groups), sum(counts)
    _refuse_many(there / max(tokens, 1), f"the tokenizer does not know {there / max(tokens, 1):.0%} of the tokens.")
    first = next((str(group.place) for group, count in zip(groups, counts, strict=True) if count), "")
    return [Problem(f"unknown tokens: {there:,} of {tokens:,}.", first, reason="token.unknown")] if first else []


def _refuse_many(share: float, message: str) -> None:
    if share > MAX_UNKNOWN:
        hint = "Is it the one of this model, and for this language?"
        raise UserError(message, location="model.tokenizer", hint=hint)


class DroppedCharacters:
    """Counts the characters of texts that are in no token; white space, which many tokenizers leave out, aside.

    Few characters have no token at all, so each is tried once, and only texts with one of those are compared with what
    their ids say: it may still be part of a longer token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._has_token: dict[str, bool] = {}
        self._characters = 0
        self.dropped: Counter[str] = Counter()
        self.place: Place | None = None  # of the first text that loses one

    def add(self, text: str, ids: Sequence[int], place: Place) -> None:
        self._characters += len(text)
        alone = [character for character in set(text) if not self._alone(character)]
        if not alone:
            return
        said = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        lost = {character: text.count(character) - said.count(character) for character in sorted(alone)}
        if lost := {character: count for character, count in lost.items() if count > 0}:
            self.dropped.update(lost)
            self.place = self.place or place

    def notes(self) -> list[Problem]:
        """A note on what was dropped, if anything was. Raises UserError where it was much."""
        if self.place is None:
            return []
        share = self.dropped.total() / self._characters
        such = f"such as {', '.join(map(repr, sorted(self.dropped)[:3]))}."
        _refuse_many(share, f"the tokenizer has no token for {share:.0%} of the characters, {such}")
        lost = f"{self.dropped.total():,} of {self._characters:,}"
        message = f"characters that have no token and are left out: {lost}, {such}"
        return [Problem(message, str(self.place), reason="token.dropped")]

    def _alone(self, character: str) -> bool:
        """Whether a character has tokens where it stands alone, all of its bytes if they are of bytes."""
        if character not in self._has_token:
            said = self._tokenizer.decode(list(ids_of(self._tokenizer, character)), skip_special_tokens=False)
            whole = REPLACEMENT not in said.replace(character, "")
            visible = bool(said.replace(SPACE, "").strip())
            self._has_token[character] = character.isspace() or character == SPACE or (whole and visible)
        return self._has_token[character]

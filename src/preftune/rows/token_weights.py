"""Weights that a row gives to the tokens of its responses, and how those of text become those of tokens.

Two forms. Spans of the response's text, `[[begin, end, weight], ...]` in characters, hold for any tokenizer; what no
span covers counts 1, and so does the end token. A plain list has one number a token of the response, end token
included, and holds for one tokenizer only. Nothing is guessed: numbers that do not fit are an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from preftune.rows.parse import MalformedRow, count, describe, items
from preftune.rows.row import Span, Weights

if TYPE_CHECKING:
    import numpy as np

Placed = Sequence[tuple[int, int, int]]  # (id, begin, end): a token and the characters that it stands for


def weights(value: object, field: str, text: str) -> Weights | None:
    """The weights that a field gives to a response's text; None for null. Raises Defect."""
    if value is None:
        return None
    given = items(value, field)
    if not any(isinstance(one, list) for one in given):
        numbers = tuple(count(one, f"{field}[{k}]") for k, one in enumerate(given))
        if not any(numbers):
            raise MalformedRow(f'"{field}" is all 0, so nothing of the response counts.', "Leave such rows out.")
        return numbers
    spans = tuple(sorted((_span(one, f"{field}[{k}]", text) for k, one in enumerate(given)), key=lambda s: s.begin))
    for one, other in pairwise(spans):
        if other.begin < one.end:
            raise MalformedRow(f'"{field}": the spans from {one.begin} and from {other.begin} overlap.')
    return spans


def _span(value: object, field: str, text: str) -> Span:
    if not isinstance(value, list) or len(value) != 3:
        raise MalformedRow(f"{field} is {describe(value)}, needs [begin, end, weight].",
                     "Either all entries are spans, or all are numbers, one a token.")  # fmt: skip
    begin, end, weight = (count(one, f"{field}[{k}]") for k, one in enumerate(value))
    if not (begin.is_integer() and end.is_integer() and begin < end <= len(text)):
        raise MalformedRow(f"{field} is no span of the response, which has {len(text)} characters: {begin:g} to {end:g}.",
                     "Count characters from 0; the end is one past the last.")  # fmt: skip
    return Span(int(begin), int(end), weight)


def of_tokens(given: Weights, text: str, tokens: int, placed: Placed | None) -> np.ndarray:
    """(tokens,) float32.

    placed: the response's tokens with their characters, counted from where `text` begins; needed for spans. A token
    counts the mean of its characters that are not white space, so a word's span is that of its token whether the
    space in front belongs to the token or not. Raises Defect where a list of numbers has another length.
    """
    import numpy as np

    numbers = [one for one in given if not isinstance(one, Span)]
    if numbers or placed is None:
        if len(numbers) != tokens:
            raise MalformedRow(f"a response has {tokens} tokens, its end token included, and {len(numbers)} token weights.",
                         "Give one a token of this tokenizer, or spans of the text.", "weights.tokens")  # fmt: skip
        return np.asarray(numbers, np.float32)
    by_character = np.ones(len(text))
    for span in given:
        if isinstance(span, Span):
            by_character[span.begin : span.end] = span.weight
    found = np.ones(tokens, np.float32)
    for place, (_, begin, end) in enumerate(placed):
        inside = range(max(begin, 0), min(max(end, begin + 1), len(text)))
        seen = [k for k in inside if not text[k].isspace()] or list(inside)
        if seen:
            found[place] = by_character[seen].mean()
    return found

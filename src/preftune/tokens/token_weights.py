"""From the weights that a row gives to its words to the weights of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preftune.rows.parse import MalformedRow
from preftune.rows.row import Span, TokenWeights

TokenOffsets = Sequence[tuple[int, int, int]]  # (id, begin, end): a token and the characters that it stands for


def weights_per_token(weights: TokenWeights, text: str, tokens: int, offsets: TokenOffsets | None) -> np.ndarray:
    """(tokens,) float32.

    offsets: the response's tokens with their characters, counted from where `text` begins; spans need them. A token
    counts the mean of its characters that are not white space, so the span of a word is that of its token, whether the
    space before it belongs to the token or not. Raises MalformedRow where a list of numbers has another length.
    """
    numbers = [weight for weight in weights if not isinstance(weight, Span)]
    if numbers or offsets is None:
        if len(numbers) != tokens:
            counts = f"{tokens} tokens, its end token included, and {len(numbers)} token weights"
            hint = "Give one a token of this tokenizer, or spans of the text."
            raise MalformedRow(f"a response has {counts}.", hint, "weights.tokens")
        return np.asarray(numbers, np.float32)
    by_character = np.ones(len(text))
    for span in weights:
        if isinstance(span, Span):
            by_character[span.begin : span.end] = span.weight
    by_token = np.ones(tokens, np.float32)
    for index, (_, begin, end) in enumerate(offsets):
        characters = range(max(begin, 0), min(max(end, begin + 1), len(text)))
        visible = [position for position in characters if not text[position].isspace()] or list(characters)
        if visible:
            by_token[index] = by_character[visible].mean()
    return by_token

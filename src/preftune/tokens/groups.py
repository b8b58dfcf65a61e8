"""A row in token ids: the value that everything after the tokenizer works on."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from preftune.rows.row import Kind, Place


class TokenGroup(Struct, frozen=True, kw_only=True, eq=False):
    """A prompt with all its responses in token ids.

    prompt: int32 (tokens of the prompt,), begin-of-text and template included, at least one token.
    responses: one int32 array each, the end-of-turn token included once (unless the response was cut).
    ranks: place of each response, 1 the best, equal for ties: (1, 2) for a pair, (1,) otherwise.
    good: whether the response of a rating was called good; None where nobody said.
    preferred, scores, weight: as in the row.
    token_weights: float32, what each token of each response counts; None where every one counts 1.
    """

    prompt: np.ndarray
    responses: tuple[np.ndarray, ...]
    kind: Kind
    place: Place
    id: str = ""
    ranks: tuple[int, ...] = (1,)
    good: bool | None = True
    preferred: float = 1.0
    scores: tuple[float, ...] | None = None
    weight: float = 1.0
    token_weights: tuple[np.ndarray, ...] | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and of all responses: what a trie of this group alone holds at most."""
        return len(self.prompt) + sum(map(len, self.responses))

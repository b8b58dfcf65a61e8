"""A row in token ids: the value that everything after the tokenizer works on."""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from preftune.rows.row import Kind, Place


class TokenGroup(Struct, frozen=True, kw_only=True, eq=False):
    """A prompt with all its responses in token ids.

    prompt: int32 (tokens of the prompt,), begin-of-text and template included, at least one token.
    responses: one int32 array each, the end-of-turn token included once (unless the response was cut).
    ranks: rank of each response, 1 the best, equal for ties: (1, 2) for a pair, (1,) for a single one, () for a task.
    good: whether the response of a rating was called good; None where nobody said.
    preferred: probability that the better response of a pair is truly better: one for all pairs of the group, or one
        for each of `ranking_pairs(ranks)`, in that order; `votes` has either as a tuple.
    scores, weight, category: as in the row.
    columns: numbers of tokens, one float32 array (tokens,) a response under each name. "weight" is what a token counts
    (1 each where there is no such column), "reference" its log-probability under the reference.
    """

    prompt: np.ndarray
    responses: tuple[np.ndarray, ...]
    kind: Kind
    place: Place
    id: str = ""
    ranks: tuple[int, ...] = (1,)
    good: bool | None = True
    preferred: float | tuple[float, ...] = 1.0
    scores: tuple[float, ...] | None = None
    weight: float = 1.0
    category: str = ""
    columns: dict[str, tuple[np.ndarray, ...]] = {}

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and of all responses: what a trie of this group alone holds at most."""
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def votes(self) -> tuple[float, ...]:
        """`preferred` as a tuple: one number for all pairs, or one for each."""
        return self.preferred if isinstance(self.preferred, tuple) else (self.preferred,)

    @property
    def is_even(self) -> bool:
        """Whether its votes prefer no response to another."""
        return all(vote == 0.5 for vote in self.votes)

    def column(self, name: str) -> tuple[np.ndarray, ...] | None:
        """The numbers of a column, response by response; None where the group has no such column."""
        return self.columns.get(name)

    def with_column(self, name: str, values: tuple[np.ndarray, ...]) -> TokenGroup:
        """A new group with this column. Raises ValueError where it has not one number a token of each response."""
        if [len(numbers) for numbers in values] != [len(response) for response in self.responses]:
            raise ValueError(f"column {name} does not fit the responses")
        return replace(self, columns={**self.columns, name: values})

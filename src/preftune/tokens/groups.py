"""A row in token ids, the value that everything after the tokenizer works on; and how long rows are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from preftune.rows.account import Account, Bin, Spread
from preftune.rows.row import Kind, Place


class LaterTurn(Struct, frozen=True, eq=False):
    """Where a further turn of the assistant stands that a response has.

    first: the place of its first token in the response; shared: with how many tokens of the turn before it and of that
    turn's prompt its own prompt begins; context: int32, the other tokens of its prompt, such as the user's next turn. A
    template may write earlier turns otherwise than the one that is to be said, and then less is shared.
    """

    first: int
    shared: int
    context: np.ndarray


class Turn(NamedTuple):
    """A turn of the assistant: the ids of all that stands before it, and its own."""

    prompt: np.ndarray
    ids: np.ndarray


class TokenGroup(Struct, frozen=True, kw_only=True, eq=False):
    """A prompt with all its responses in token ids.

    prompt: int32 (tokens of the prompt,), begin-of-text and template included, at least one token.
    responses: one int32 array each, the end-of-turn token included once (unless the response was cut). A response with
        several turns of the assistant is their tokens, one turn after the other.
    later_turns: the turns of each response after its first; () where no response has any.
    ranks: rank of each response, 1 the best, equal for ties: (1, 2) for a pair, (1,) for a single one, () for a task.
    good: whether the response of a rating was called good; None where nobody said.
    preferred: probability that the better response of a pair is truly better: one for all pairs of the group, or one
        for each of `ranking_pairs(ranks)`, in that order; `votes` has either as a tuple.
    scores, weight, times, category: as in the row.
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
    times: int = 1
    category: str = ""
    columns: dict[str, tuple[np.ndarray, ...]] = {}
    later_turns: tuple[tuple[LaterTurn, ...], ...] = ()

    @property
    def turns(self) -> list[list[Turn]]:
        """The turns of each response: what goes through the model to score it, since each is said after its prompt."""
        if not self.later_turns:
            return [[Turn(self.prompt, response)] for response in self.responses]
        turns = []
        for response, later in zip(self.responses, self.later_turns, strict=True):
            firsts = [turn.first for turn in later]
            said = np.split(response, firsts)
            turns.append([Turn(self.prompt, said[0])])
            for turn, ids in zip(later, said[1:], strict=True):
                before = np.concatenate(turns[-1][-1])[: turn.shared]
                turns[-1].append(Turn(np.concatenate([before, turn.context]), ids))
        return turns

    @property
    def parts(self) -> list[np.ndarray]:
        """All its ids: the prompt, the responses, and what stands between their turns."""
        return [self.prompt, *self.responses, *(turn.context for later in self.later_turns for turn in later)]

    @property
    def tokens(self) -> int:
        """Tokens of all parts: what a trie of this group alone holds at most."""
        return sum(map(len, self.parts))

    @property
    def tokens_naive(self) -> int:
        """Tokens of the prompt with each response, as trainers without sharing compute them."""
        return len(self.prompt) * (len(self.responses) - 1) + self.tokens

    @property
    def votes(self) -> tuple[float, ...]:
        """`preferred` as a tuple: one number for all pairs, or one for each."""
        return self.preferred if isinstance(self.preferred, tuple) else (self.preferred,)

    @property
    def is_even(self) -> bool:
        """Whether its votes prefer no response to another."""
        return all(vote == 0.5 for vote in self.votes)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with the longest response."""
        return max(len(turn.prompt) + len(turn.ids) for turns in self.turns for turn in turns)

    def column(self, name: str) -> tuple[np.ndarray, ...] | None:
        """The numbers of a column, response by response; None where the group has no such column."""
        return self.columns.get(name)

    def with_column(self, name: str, values: tuple[np.ndarray, ...]) -> TokenGroup:
        """A new group with this column. Raises ValueError where it has not one number a token of each response."""
        if [len(numbers) for numbers in values] != [len(response) for response in self.responses]:
            raise ValueError(f"column {name} does not fit the responses")
        return replace(self, columns={**self.columns, name: values})


def repeated(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """The rows of an epoch: each group as often as it is taken, all of them once before any a second time."""
    passes = range(max((group.times for group in groups), default=0))
    return [group for number in passes for group in groups if group.times > number]


def with_lengths(account: Account, groups: Sequence[TokenGroup]) -> Account:
    """The account with the lengths of these groups, for data.json and the page.

    As chosen counts the chosen response of a pair, a good one of a rating, a best one of a ranking, and a demo's; as
    rejected count the others.
    """
    lengths: dict[str, list[int]] = {"prompt": [len(group.prompt) for group in groups], "chosen": [], "rejected": []}
    for group in groups:
        for ids, rank in zip(group.responses, group.ranks, strict=True):
            lengths["chosen" if rank == 1 and group.good is not False else "rejected"].append(len(ids))
    pairs = [group.responses for group in groups if group.kind == "pair"]
    longer = sum(len(chosen) > len(rejected) for chosen, rejected in pairs)
    return replace(
        account,
        lengths={name: _spread(values) for name, values in lengths.items() if values},
        chosen_longer=longer / len(pairs) if pairs else None,
        tokens_naive=sum(group.tokens_naive for group in groups),
        tokens_distinct=sum(group.tokens for group in groups),
    )


def _spread(lengths: list[int]) -> Spread:
    edges = [0, 8]
    while edges[-1] < max(lengths):
        edges.append(2 * edges[-1])
    bins = tuple(Bin(high, sum(low < length <= high for length in lengths)) for low, high in pairwise(edges))
    first = next(index for index, bin_ in enumerate(bins) if bin_.count)
    return Spread(float(np.median(lengths)), float(np.quantile(lengths, 0.9)), max(lengths), bins[first:])

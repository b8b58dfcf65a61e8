"""Responses of a pack or a step, arranged as the examples that an objective is a formula of.

A row serves objectives of another kind where the meaning is plain: a ranking is all its pairs, a pair is a ranking of
two and two ratings, and the good response of any row is a demo. The weights of the examples that come from one row sum
to the row's weight. Held by tests/forward/test_examples.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from preftune.objective import Formula
from preftune.objective.rankings import ranking_pairs
from preftune.objective.responses import Comparisons, Demos, Pairs, Rankings, Ratings, Responses, Rollouts
from preftune.tokens.groups import TokenGroup

RankingsAs = Literal["all", "best"]
SERVES: dict[str, tuple[str, ...]] = {  # which kinds of rows give examples of which kind
    "pairs": ("pair", "ranking"),
    "ratings": ("rating", "pair"),
    "rankings": ("ranking", "pair"),
    "demos": ("demo", "pair", "rating", "ranking"),
    "rollouts": (),  # no row gives any: they are drawn
    "comparisons": ("pair", "ranking"),
}
UNLABELED = ("rating", "pair", "ranking")  # rows that give ratings to objectives that read no label


def row_kinds(part: Formula) -> tuple[str, ...]:
    """The kinds of rows that an objective can use."""
    return UNLABELED if part.kind == "ratings" and "label" not in part.reads else SERVES[part.kind]


def is_useful(group: TokenGroup, part: Formula) -> bool:
    """Whether an objective can use this row of a right kind: no demo is a bad response, and without votes in the
    formula a row with even votes prefers neither response."""
    if part.kind == "demos":
        return group.good is not False
    return "votes" in part.reads or not group.is_even


@dataclass(frozen=True)
class Examples:
    """The same responses as pairs, ratings, rankings and demos, or as comparisons.

    responses: in the order of the groups; their `logp` is what the model's head says summed over a response, and so the
    score of a response where it is a scalar head; rankings_as: which pairs a ranking gives (see `ranking_pairs`);
    mismatched: responses under the prompts of other rows; token_logp: (members,) of every token of every response, for
    objectives that read tokens.
    """

    groups: Sequence[TokenGroup]
    responses: Responses
    rankings_as: RankingsAs = "all"
    mismatched: Responses | None = None
    token_logp: Tensor | None = None

    @cached_property
    def starts(self) -> list[int]:
        """Index of each group's first response."""
        return [0, *accumulate(len(group.responses) for group in self.groups)][:-1]

    @cached_property
    def pair_index(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(pairs,) each: index of the better response, of the worse one, weight, and probability of that order."""
        better, worse, weight, preferred = [], [], [], []
        for start, group in zip(self.starts, self.groups, strict=True):
            above, below, shares = ranking_pairs(group.ranks, self.rankings_as)
            better += [start + i for i in above]
            worse += [start + j for j in below]
            weight += [group.weight * share for share in shares]
            preferred += _votes_of(group, list(zip(above, below, strict=True)))
        return self._index(better), self._index(worse), self._float(weight), self._float(preferred)

    def pairs_of(self, group: TokenGroup) -> int:
        """How many pairs a group gives."""
        return len(ranking_pairs(group.ranks, self.rankings_as)[0])

    @cached_property
    def pairs(self) -> Pairs:
        better, worse, weight, preferred = self.pair_index
        scored = self._all_scored("pair", "ranking")
        return Pairs(self._at(better, scored), self._at(worse, scored), weight, preferred)

    @cached_property
    def comparisons(self) -> Comparisons:
        better, worse, weight, preferred = self.pair_index
        score, explicit = self.responses.logp, self.responses.score
        scored = explicit is not None and self._all_scored("pair", "ranking")
        better_by = explicit[better] - explicit[worse] if explicit is not None and scored else None
        return Comparisons(score[better], score[worse], weight, preferred, better_by)

    @cached_property
    def side_index(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(index, weight) of the responses that metrics call chosen, and of those that they call rejected."""
        better, worse, weight, _ = self.pair_index

        def side(paired: Tensor, good: bool) -> tuple[Tensor, Tensor]:
            single = [(start, g.weight) for start, g in self._of("rating", "demo") if (g.good is not False) == good]
            index = torch.cat([paired, self._index([start for start, _ in single])])
            return index, torch.cat([weight, self._float([single_weight for _, single_weight in single])])

        return side(better, True), side(worse, False)

    @cached_property
    def ratings(self) -> Ratings:
        index, good, weight = [], [], []
        for start, group in self._of(*UNLABELED):
            count = len(group.responses)
            index += range(start, start + count)
            good += [bool(group.good) and rank == 1 for rank in group.ranks]
            weight += [group.weight / count] * count
        responses = self._at(self._index(index), self._all_scored(*UNLABELED))
        is_good = torch.tensor(good, dtype=torch.bool, device=self._device)
        return Ratings(responses, is_good, self._float(weight), self.mismatched)

    @cached_property
    def rankings(self) -> Rankings:
        index, group_index, rank, weight = [], [], [], []
        for start, group in self._of("pair", "ranking"):
            index += range(start, start + len(group.responses))
            group_index += [len(weight)] * len(group.responses)
            rank += group.ranks
            weight.append(group.weight)
        responses = self._at(self._index(index), self._all_scored("pair", "ranking"))
        return Rankings(responses, self._index(group_index), self._index(rank), self._float(weight))

    @cached_property
    def demos(self) -> Demos:
        index, weight = [], []
        for start, group in zip(self.starts, self.groups, strict=True):
            best = [start + i for i, rank in enumerate(group.ranks) if rank == 1 and group.good is not False]
            index += best
            weight += [group.weight / len(best)] * len(best) if best else []
        return Demos(self.responses[self._index(index)], self._float(weight))

    @cached_property
    def rollouts(self) -> Rollouts:
        assert self.token_logp is not None
        weight = [group.weight / len(group.responses) for group in self.groups for _ in group.responses]
        return Rollouts(
            self.token_logp,
            column_of(self.groups, "sampled"),
            column_of(self.groups, "advantage"),
            response_of_tokens(self.groups),
            self._float(weight),
        )

    def _of(self, *kinds: str) -> Iterator[tuple[int, TokenGroup]]:
        """The groups of these kinds, each with the index of its first response."""
        return ((start, g) for start, g in zip(self.starts, self.groups, strict=True) if g.kind in kinds)

    def _all_scored(self, *kinds: str) -> bool:
        return all(group.scores is not None for _, group in self._of(*kinds))

    def _at(self, index: Tensor, scored: bool) -> Responses:
        """The responses at these indices; without explicit scores unless all their groups have some."""
        responses = self.responses[index]
        return responses if scored else replace(responses, score=None)

    @property
    def _device(self) -> torch.device:
        return self.responses.logp.device

    def _index(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    def _float(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=self.responses.logp.dtype, device=self._device)


def column_of(groups: Sequence[TokenGroup], name: str) -> Tensor:
    """(members,) fp64: the numbers of a column, which every group has, of all tokens of all responses."""
    columns = [numbers for group in groups for numbers in group.columns[name]]
    return torch.from_numpy(np.concatenate(columns)).double()


def response_of_tokens(groups: Sequence[TokenGroup]) -> Tensor:
    """(members,) which response each token belongs to, counted over all groups."""
    lengths = torch.tensor([len(response) for group in groups for response in group.responses])
    return torch.arange(len(lengths)).repeat_interleave(lengths)


def _votes_of(group: TokenGroup, pairs: Sequence[tuple[int, int]]) -> Sequence[float]:
    """The probability of each of these pairs of a group."""
    if len(group.votes) == 1:
        return group.votes * len(pairs)
    above, below, _ = ranking_pairs(group.ranks)
    by_pair = dict(zip(zip(above, below, strict=True), group.votes, strict=True))
    return [by_pair[pair] for pair in pairs]


def class_weights(groups: Sequence[TokenGroup]) -> tuple[float, float]:
    """Total weight of good and of bad responses, as `Examples.ratings` sees rows with labels."""
    pairs = sum(g.weight for g in groups if g.kind == "pair") / 2
    good, bad = (sum(g.weight for g in groups if g.kind == "rating" and g.good == label) for label in (True, False))
    return good + pairs, bad + pairs


def mismatch(groups: Sequence[TokenGroup], longest: int) -> list[TokenGroup]:
    """Each response of these rows under the prompt of another row, for KTO's drift; equal prompts are never exchanged.

    The responses are put in the order of their prompts. A shift by the size of the largest block of equal prompts then
    meets another prompt everywhere, unless one block is more than half of all. Responses that meet their own prompt and
    those that would be longer than `longest` tokens are left out. Of a response with several turns it is the first.
    """
    by_prompt = [(g.prompt.tobytes(), g, i) for g in groups for i in range(len(g.responses))]
    by_prompt.sort(key=lambda entry: entry[0])
    blocks = Counter(key for key, _, _ in by_prompt)
    shift = max(blocks.values(), default=0)
    mismatched = []
    for position, (key, group, _) in enumerate(by_prompt):
        other_key, other, i = by_prompt[(position + shift) % len(by_prompt)]
        response, weights = other.turns[i][0].ids, other.column("weight")
        columns = {"weight": (weights[i][: len(response)],)} if weights else {}
        if other_key != key and len(group.prompt) + len(response) <= longest:
            mismatched.append(TokenGroup(prompt=group.prompt, responses=(response,), kind="demo", place=group.place,
                                         columns=columns))  # fmt: skip
    return mismatched

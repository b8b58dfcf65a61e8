"""Responses of a pack or of a step, arranged as the examples that an objective is a formula of.

Rows of one kind serve objectives of another where the meaning is plain: a ranking is all its pairs, a pair is a
ranking of two and two ratings, and the good response of anything can be imitated. The weights of the examples that
come from one row sum to the row's weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from preftune.objective.base import Formula, RatingFormula
from preftune.objective.rankings import ranking_pairs
from preftune.objective.responses import Demos, Pairs, Rankings, Ratings, Responses
from preftune.tokens.groups import TokenGroup

RankingsAs = Literal["all", "best"]
ACCEPTS = {
    "pairs": ("pair", "ranking"),
    "ratings": ("rating", "pair"),
    "rankings": ("ranking", "pair"),
    "demos": ("demo", "pair", "rating", "ranking"),
}


def row_kinds(part: Formula) -> tuple[str, ...]:
    """Kinds of rows that serve an objective. One of single responses that asks for no label takes rankings too."""
    return (*ACCEPTS[part.kind], *(("ranking",) if isinstance(part, RatingFormula) and not part.labels else ()))


def is_useful(group: TokenGroup, part: Formula) -> bool:
    """Whether a row of the right kind says anything to an objective: a bad response is not one to imitate, and even
    votes prefer neither."""
    if part.kind == "demos":
        return group.good is not False
    return part.votes or group.preferred != 0.5


@dataclass(frozen=True)
class Examples:
    """The same responses as pairs, ratings, rankings and demos; scores in the order groups, responses.

    rankings_as: which pairs a ranking gives (see `ranking_pairs`); mismatched: responses under others' prompts.
    """

    groups: Sequence[TokenGroup]
    scores: Responses
    rankings_as: RankingsAs = "all"
    mismatched: Responses | None = None

    @cached_property
    def starts(self) -> list[int]:
        """Place of each group's first response."""
        starts = [0]
        for group in self.groups:
            starts.append(starts[-1] + len(group.responses))
        return starts[:-1]

    @cached_property
    def pair_index(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(pairs,) each: place of the better response, of the worse one, weight, and probability of that order."""
        better, worse, weight, preferred = [], [], [], []
        for start, group in zip(self.starts, self.groups, strict=True):
            first, second, each = ranking_pairs(group.ranks, self.rankings_as)
            better += [start + i for i in first]
            worse += [start + j for j in second]
            weight += [group.weight * w for w in each]
            preferred += [group.preferred] * len(each)
        return self._index(better), self._index(worse), self._float(weight), self._float(preferred)

    def pairs_of(self, group: TokenGroup) -> int:
        """How many pairs a group gives."""
        return len(ranking_pairs(group.ranks, self.rankings_as)[0])

    @cached_property
    def pairs(self) -> Pairs:
        better, worse, weight, preferred = self.pair_index
        several = [group for group in self.groups if len(group.responses) > 1]
        return Pairs(self._at(better, several), self._at(worse, several), weight, preferred)

    @cached_property
    def side_index(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(places, weights) of what meters call chosen, and of what they call rejected."""
        better, worse, weight, _ = self.pair_index
        single = [(start, g) for start, g in zip(self.starts, self.groups, strict=True) if len(g.responses) == 1]
        found = []
        for paired, good in ((better, True), (worse, False)):
            mine = [(start, g.weight) for start, g in single if (g.good is not False) == good]
            places = torch.cat([paired, self._index([start for start, _ in mine])])
            found.append((places, torch.cat([weight, self._float([w for _, w in mine])])))
        return found[0], found[1]

    @cached_property
    def ratings(self) -> Ratings:
        at, good, weight = [], [], []
        for start, group in zip(self.starts, self.groups, strict=True):
            if group.kind == "rating":
                at, good, weight = [*at, start], [*good, bool(group.good)], [*weight, group.weight]
            elif group.kind in ("pair", "ranking"):
                count = len(group.responses)
                at += range(start, start + count)
                good += [rank == 1 for rank in group.ranks]
                weight += [group.weight / count] * count
        is_good = torch.tensor(good, dtype=torch.bool, device=self._device)
        judged = [group for group in self.groups if group.kind != "demo"]
        return Ratings(self._at(self._index(at), judged), is_good, self._float(weight), self.mismatched)

    @cached_property
    def rankings(self) -> Rankings:
        at, owner, rank, weight = [], [], [], []
        for start, group in zip(self.starts, self.groups, strict=True):
            if group.kind in ACCEPTS["rankings"]:
                at += range(start, start + len(group.responses))
                owner += [len(weight)] * len(group.responses)
                rank += group.ranks
                weight.append(group.weight)
        ranked = [group for group in self.groups if group.kind in ACCEPTS["rankings"]]
        scores = self._at(self._index(at), ranked)
        return Rankings(scores, self._index(owner), self._index(rank), self._float(weight))

    @cached_property
    def demos(self) -> Demos:
        at, weight = [], []
        for start, group in zip(self.starts, self.groups, strict=True):
            if group.good is False:
                continue
            best = [start + i for i, rank in enumerate(group.ranks) if rank == 1]
            at += best
            weight += [group.weight / len(best)] * len(best)
        return Demos(self.scores[self._index(at)], self._float(weight))

    @property
    def _device(self) -> torch.device:
        return self.scores.logp.device

    def _index(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    def _float(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=self.scores.logp.dtype, device=self._device)

    def _at(self, places: Tensor, groups: Sequence[TokenGroup]) -> Responses:
        """The responses at these places; without explicit scores where not all of their groups have some."""
        found = self.scores[places]
        return found if all(group.scores is not None for group in groups) else replace(found, score=None)


def class_weights(groups: Sequence[TokenGroup]) -> tuple[float, float]:
    """Total weight of good and of bad responses, as `Views.ratings` sees these rows."""
    pairs = sum(g.weight for g in groups if g.kind == "pair") / 2
    good, bad = (sum(g.weight for g in groups if g.kind == "rating" and g.good == side) for side in (True, False))
    return good + pairs, bad + pairs


def mismatch(groups: Sequence[TokenGroup], longest: int) -> list[TokenGroup]:
    """Each response of these rows under the prompt of another row, for KTO's drift; prompts that are equal never swap.

    With the responses in order of their prompts, going on by the size of the largest block of equal prompts meets
    another prompt everywhere, unless one block is over half of all; what then meets itself, and what would be
    longer than `longest` tokens, is left out.
    """
    keyed = [(g.prompt.tobytes(), g, at) for g in groups for at in range(len(g.responses))]
    keyed.sort(key=lambda item: item[0])
    blocks = Counter(key for key, _, _ in keyed)
    step = max(blocks.values(), default=0)
    found = []
    for place, (key, group, _) in enumerate(keyed):
        other, owner, at = keyed[(place + step) % len(keyed)]
        response, weights = owner.responses[at], owner.column("weight")
        if other != key and len(group.prompt) + len(response) <= longest:
            found.append(TokenGroup(prompt=group.prompt, responses=(response,), kind="demo", place=group.place,
                                    columns={"weight": weights[at : at + 1]} if weights else {}))  # fmt: skip
    return found

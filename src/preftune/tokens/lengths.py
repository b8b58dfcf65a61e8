"""How long the groups are: what `data.json` and the report show."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from msgspec import Struct

from preftune.tokens.groups import TokenGroup


class Bin(Struct, frozen=True):
    """Lengths of at most `to` tokens and more than the bin before holds."""

    to: int
    count: int


class Spread(Struct, frozen=True):
    """Distribution of lengths, in tokens; the bins double in width from 8 on."""

    median: float
    p90: float
    max: int
    bins: tuple[Bin, ...]


class Lengths(Struct, frozen=True):
    """lengths: of `prompt`, `chosen` and `rejected`, as far as there are any.

    chosen: the chosen response of a pair, a good one of a rating, a best one of a ranking, a demo's; rejected: the
    others. chosen_longer: share of pairs whose chosen response has more tokens, None without pairs. tokens_naive:
    each response with its own copy of the prompt; tokens_distinct: each prompt once a group.
    """

    lengths: dict[str, Spread]
    chosen_longer: float | None
    tokens_naive: int
    tokens_distinct: int


def summarize(groups: Sequence[TokenGroup]) -> Lengths:
    """Lengths of all groups."""
    found: dict[str, list[int]] = {"prompt": [len(group.prompt) for group in groups], "chosen": [], "rejected": []}
    for group in groups:
        for ids, rank in zip(group.responses, group.ranks, strict=True):
            found["chosen" if rank == 1 and group.good is not False else "rejected"].append(len(ids))
    pairs = [group.responses for group in groups if group.kind == "pair"]
    longer = sum(len(chosen) > len(rejected) for chosen, rejected in pairs)
    return Lengths(
        lengths={name: _spread(values) for name, values in found.items() if values},
        chosen_longer=longer / len(pairs) if pairs else None,
        tokens_naive=sum(len(group.prompt) * len(group.responses) + sum(map(len, group.responses)) for group in groups),
        tokens_distinct=sum(group.tokens for group in groups),
    )


def _spread(values: list[int]) -> Spread:
    edges = [0, 8]
    while edges[-1] < max(values):
        edges.append(2 * edges[-1])
    bins = tuple(Bin(high, sum(low < value <= high for value in values)) for low, high in pairwise(edges))
    used = next(k for k, one in enumerate(bins) if one.count)
    return Spread(float(np.median(values)), float(np.quantile(values, 0.9)), max(values), bins[used:])

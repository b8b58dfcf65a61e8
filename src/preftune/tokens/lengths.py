"""How long the groups are: what `data.json` and the report show."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from msgspec.structs import replace

from preftune.rows.account import Account, Bin, Spread
from preftune.tokens.groups import TokenGroup


def with_lengths(account: Account, groups: Sequence[TokenGroup]) -> Account:
    """The account with the lengths of these groups.

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
        tokens_naive=sum(len(group.prompt) * (len(group.responses) - 1) + group.tokens for group in groups),
        tokens_distinct=sum(group.tokens for group in groups),
    )


def _spread(lengths: list[int]) -> Spread:
    edges = [0, 8]
    while edges[-1] < max(lengths):
        edges.append(2 * edges[-1])
    bins = tuple(Bin(high, sum(low < length <= high for length in lengths)) for low, high in pairwise(edges))
    first = next(index for index, bin_ in enumerate(bins) if bin_.count)
    return Spread(float(np.median(lengths)), float(np.quantile(lengths, 0.9)), max(lengths), bins[first:])

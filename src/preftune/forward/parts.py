"""Log-probabilities of parts of a response, from a pass that is made anyway. Held by tests/evaluate/test_parts.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from preftune.pack.trie import common_prefix
from preftune.tokens.groups import TokenGroup


def part_sums(groups: Sequence[TokenGroup], token_values: Tensor) -> Tensor:
    """(members,) -> (responses, 3) fp64: a response's last token; in a pair, the tokens before the two responses part,
    which have the same numbers in both, and the token at which they part."""
    bounds, start = [], 0
    for group in groups:
        shared = common_prefix(*group.responses) if group.kind == "pair" else 0
        for response in group.responses:
            fork = start + shared
            start += len(response)
            bounds.append((start - 1, start, fork - shared, fork, fork, min(fork + 1, start)))
    sums = torch.nn.functional.pad(token_values.detach().double().cumsum(0), (1, 0))
    first, last = torch.tensor(bounds, device=sums.device).unflatten(1, (3, 2)).unbind(-1)
    return sums[last] - sums[first]


def outside_fork(group: TokenGroup, fork_logp: np.ndarray) -> float:
    """Probability of every token but those two at which the responses of a pair part; NaN where either does not count.

    fork_logp: (2,) log-probabilities of those two tokens, `part_sums`' last column. What comes before is the same.
    """
    fork, weights = common_prefix(*group.responses), group.column("weight")
    if fork >= min(map(len, group.responses)) or any(w[fork] != 1 for w in weights or ()):
        return float("nan")
    return max(0.0, 1.0 - float(np.exp(fork_logp).sum()))  # rounding aside, the two are no more than all

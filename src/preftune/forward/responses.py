"""Numbers of responses: what is known of them before any forward pass, and sums over parts of what a pass gives.

Held by tests/evaluate/test_parts.py and tests/laws/test_packs.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from preftune.objective.responses import Responses
from preftune.pack.batch import send
from preftune.pack.trie import common_prefix
from preftune.tokens.groups import TokenGroup


def token_weights(groups: Sequence[TokenGroup], device: torch.device) -> Tensor | None:
    """(members,) what each token counts; None where every one counts 1."""
    if all(group.column("weight") is None for group in groups):
        return None
    weights = [
        w for group in groups for w in group.column("weight") or [np.ones(len(r), np.float32) for r in group.responses]
    ]
    return send(torch.from_numpy(np.concatenate(weights)), device)


def responses_of(groups: Sequence[TokenGroup], logp: Tensor, sharpness: Tensor | None, dtype: torch.dtype) -> Responses:
    """All that a loss may read of these groups' responses, (responses,) fp64 on the host.

    logp: (responses,) fp64 on the host. dtype: that of the policy's log-probabilities. Sums of columns are rounded to
    it as the policy's own sum is, so that a policy that equals its reference has a margin of exactly 0.
    """
    kind = np.float64 if dtype == torch.float64 else np.float32
    responses = [(group, index) for group in groups for index in range(len(group.responses))]

    def total(name: str) -> Tensor:
        sums = np.empty(len(responses), kind)
        for place, (group, index) in enumerate(responses):
            values, weights = group.column(name), group.column("weight")
            if values is None:
                sums[place] = len(group.responses[index])  # a weight of 1 a token
                continue
            tokens = values[index].astype(kind, copy=False)
            if name != "weight" and weights is not None:
                tokens = tokens * weights[index].astype(kind, copy=False)
            sums[place] = tokens.sum(dtype=np.float64)
        return torch.from_numpy(sums.astype(np.float64))

    tokens = torch.tensor([len(group.responses[index]) for group, index in responses], dtype=torch.float64)
    weighted = any(group.column("weight") is not None for group in groups)
    referred = all(group.column("reference") is not None for group in groups)
    return Responses(logp, tokens, total("reference") if referred else None, sharpness=sharpness,
                     weight_sum=total("weight") if weighted else None)  # fmt: skip


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

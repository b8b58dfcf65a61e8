"""What is known of responses before any forward pass: their tokens, and sums over columns of their groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from preftune.objective.responses import Responses
from preftune.pack.batch import send
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

"""The loss of a training step as one function of four tensors, for those who bring their own loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preftune.objective.pairs import DPO
from preftune.objective.responses import Pairs, Responses

if TYPE_CHECKING:
    from torch import Tensor


def dpo_loss(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor, beta: float = 0.1
) -> Tensor:
    """Mean DPO loss of some pairs, a scalar in nats (arXiv 2305.18290, eq. 7).

    Each tensor is (pairs,): log-probability of the response summed over its tokens, in nats, under the policy and
    under the reference. The reference's are detached. Raises ValueError where beta is not above 0.
    """
    import torch

    if not beta > 0:
        raise ValueError(f"beta must be above 0, not {beta}")
    ones = torch.ones_like(chosen_logp).detach()
    chosen = Responses(chosen_logp, ones, ref_chosen_logp)
    rejected = Responses(rejected_logp, ones, ref_rejected_logp)
    return DPO(beta=beta)(Pairs(chosen, rejected, ones, ones)).mean()

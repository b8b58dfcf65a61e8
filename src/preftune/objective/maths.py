"""The few functions that all objectives are made of. Elementwise, finite in value and gradient wherever the true
values are; torch is imported when they are called, because configuration is read without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_EXPONENT = 80.0  # exp(80) is 6e34: finite in fp32 and bf16 with room for a factor and a sum
CERTAIN = -1e-12  # nearest to 0 that a mean log-probability is taken; beyond, the odds have no finite value


def logistic(x: Tensor) -> Tensor:
    """-log sigmoid(x), the Bradley-Terry negative log-likelihood of a reward difference x."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(x)


def hinge(x: Tensor, at: float = 1.0) -> Tensor:
    """max(0, at - x)."""
    return (at - x).relu()


def square(x: Tensor, at: float | Tensor) -> Tensor:
    """(x - at)^2."""
    return (x - at).square()


def kl_of_coins(log_odds: Tensor, other: float | Tensor) -> Tensor:
    """KL(sigmoid(log_odds) || sigmoid(other)) of two coins, in nats."""
    import torch
    from torch.nn.functional import logsigmoid

    other = torch.as_tensor(other, dtype=log_odds.dtype, device=log_odds.device)
    heads = log_odds.sigmoid() * (logsigmoid(log_odds) - logsigmoid(other))
    return heads + (-log_odds).sigmoid() * (logsigmoid(-log_odds) - logsigmoid(-other))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0; x above -1e-12 is taken as -1e-12 and then has no gradient.

    Both branches are given arguments at which they are finite: `where` alone hides an infinite value, not its gradient.
    """
    import torch

    x = x.clamp(max=CERTAIN)
    near = x > -0.6931471805599453
    small = torch.where(near, x, torch.full_like(x, -0.5))
    large = torch.where(near, torch.full_like(x, -1.0), x)
    return torch.where(near, (-torch.expm1(small)).log(), torch.log1p(-large.exp()))


def log_odds(mean_logp: Tensor) -> Tensor:
    """log p / (1 - p) of p = exp(mean_logp) (ORPO, arXiv 2403.07691, eq. 4)."""
    return mean_logp - log1mexp(mean_logp)


def box_cox(x: Tensor, alpha: float) -> Tensor:
    """(1 - exp(-alpha x)) / alpha, which is x at alpha = 0; the exponent stops at 80."""
    import torch

    return x if alpha == 0 else -torch.expm1((-alpha * x).clamp(max=LARGEST_EXPONENT)) / alpha


def bounded_exp(x: Tensor, largest: float = LARGEST_EXPONENT) -> Tensor:
    """exp(x), x stopping at `largest`; no gradient beyond."""
    return x.clamp(max=largest).exp()


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of `values` under `weight`, a scalar; 0 where no weight is left."""
    total = weight.sum()
    return (values * weight).sum() / total.clamp(min=1e-30)

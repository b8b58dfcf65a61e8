"""Advantages of drawn tokens: pure functions of a whole phase, in fp64.

The reward of a token is -beta (log pi - log pi_ref), and the last token of a response has its score as well. So the KL
is a part of the reward and never a loss of its own: summed over tokens, every KL loss forgets that a token leads to
later KL, and has another optimum (docs/trade-off.md). After the last token there is nothing, whether the response ended
or was cut: its score is the whole reward of what was drawn. Held by tests/numbers/test_rollouts.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from preftune.objective.responses import Advantages, Draws, sum_by

if TYPE_CHECKING:
    from torch import Tensor

STD_FLOOR = 1e-8  # added to a standard deviation before it divides


def is_last(response: Tensor) -> Tensor:
    """(members,) -> (members,) bool: whether a token is the last one of its response."""
    import torch

    last = torch.ones_like(response, dtype=torch.bool)
    last[:-1] = response[1:] != response[:-1]
    return last


def token_rewards(draws: Draws, beta: float) -> Tensor:
    """(members,) the reward of each token: its KL penalty (k1), and at the last token of a response the score too."""
    import torch

    rewards = torch.where(is_last(draws.response), draws.score[draws.response], 0.0)
    return rewards - beta * (draws.sampled - draws.ref_logp) if beta else rewards


def response_rewards(draws: Draws, beta: float) -> Tensor:
    """(responses,) score - beta (log pi(y|x) - log pi_ref(y|x)): the sum of the rewards of a response's tokens."""
    return draws.sum(token_rewards(draws, beta))


def return_to_go(rewards: Tensor, response: Tensor, decay: float = 1.0) -> Tensor:
    """(members,) sum over s >= t of decay^(s - t) rewards_s, over the tokens of the same response."""
    import torch

    count = int(response[-1]) + 1 if len(response) else 0
    tokens = sum_by(response, torch.ones_like(response), count)
    place = torch.arange(len(response), device=response.device) - (tokens.cumsum(0) - tokens)[response]
    # response after response side by side, so that as many steps are made as the longest has tokens
    side_by_side = rewards.new_zeros((int(tokens.max()) if count else 0, count)).index_put((place, response), rewards)
    for t in range(len(side_by_side) - 2, -1, -1):
        side_by_side[t] += decay * side_by_side[t + 1]
    return side_by_side[place, response]


def gae(rewards: Tensor, value: Tensor, response: Tensor, lam: float) -> Tensor:
    """(members,) generalized advantage estimates, without discount (arXiv 1506.02438, eq. 16).

    A_t = sum_s lam^(s - t) delta_s, delta_t = r_t + V_(t+1) - V_t; V is 0 after the last token. With an exact V every
    lam gives the true gradient; lam = 1 does with any V.
    """
    import torch

    after = torch.where(is_last(response), 0.0, value.roll(-1))
    return return_to_go(rewards + after - value, response, lam)


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """(responses,) -> (responses,): mean over the responses to the same prompt; of equal numbers, that very number."""
    import torch

    first = values[torch.searchsorted(group, group)]
    return first + (sum_by(group, values - first, len(group)) / responses_of_group(group).clamp(min=1))[group]


def responses_of_group(group: Tensor) -> Tensor:
    """(responses,) -> (responses,): how many responses each group has, in the first cells; the rest is 0."""
    import torch

    return torch.bincount(group, minlength=len(group))


def leave_one_out(values: Tensor, group: Tensor) -> Tensor:
    """(responses,) each number minus the mean of the others of its group (RLOO, arXiv 2402.14740, eq. 9).

    Raises ValueError where a group has a single response.
    """
    count = _several(group)
    return (values - group_mean(values, group)) * count / (count - 1)


def group_scaled(values: Tensor, group: Tensor) -> Tensor:
    """(responses,) (x - mean) / std over each group, the std with n - 1 (GRPO, arXiv 2402.03300, sec. 4.1.2).

    Raises ValueError where a group has a single response.
    """
    count = _several(group)
    centered = values - group_mean(values, group)
    std = (group_mean(centered**2, group) * count / (count - 1)).sqrt()
    return centered / (std + STD_FLOOR)


def _several(group: Tensor) -> Tensor:
    """(responses,) how many responses the group of each has. Raises ValueError where it is one."""
    count = responses_of_group(group)[group]
    if bool((count < 2).any()):
        raise ValueError("a baseline of the other responses needs at least two responses to each prompt")
    return count


def whitened(values: Tensor) -> Tensor:
    """(n,) with mean 0 and standard deviation 1 over the phase."""
    away = values - values[:1]  # whose mean is exact where all values are equal
    return (away - away.mean()) / (away.std(unbiased=False) + STD_FLOOR)


def corrected(advantages: Advantages, logp: Tensor, sampled: Tensor, cut: float = 2.0) -> Advantages:
    """The advantages times pi / mu of each token, cut from above: for a sampler mu that is not quite the policy pi.

    logp, sampled: (members,) of the same tokens under the policy and as the sampler said. A truncated importance weight
    mends noise of the sampler; it does not mend another temperature, since the states before a token keep their weight.
    """
    ratio = (logp - sampled).exp().clamp(max=cut)
    return replace(advantages, advantage=advantages.advantage * ratio)

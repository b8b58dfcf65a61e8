"""Objectives of groups of drawn responses: GRPO, and what keeps its advantages and has another surrogate.

Held by tests/numbers/test_rollouts.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from preftune.objective.advantage import group_mean, group_scaled, response_rewards
from preftune.objective.responses import Advantages, Draws, Rollouts
from preftune.objective.rollouts import (
    Clip,
    ClipHigh,
    RolloutFormula,
    bounds,
    clipped,
    outside,
    ratio_of_tokens,
)
from preftune.table import about

if TYPE_CHECKING:
    from torch import Tensor


Norm = Annotated[
    Literal["token", "sequence", "sum"],
    about(
        "token: mean over all tokens of the phase; sequence: over each response's own; sum: no mean.",
        also="loss_agg_mode",
    ),
]


class GroupFormula(RolloutFormula, frozen=True):
    """The advantage of a response is its reward less the mean of its group, the same at all of its tokens."""

    least_responses = 2

    scale: Annotated[
        Literal["none", "group"],
        about(
            "What an advantage is divided by: nothing, or the standard deviation of its group.", also="scale_rewards"
        ),
    ] = "none"
    norm: Norm = "token"

    @property
    def variant(self) -> str:
        divided = "divided" if self.scale == "group" else "not divided"
        means = {"token": "a mean over the phase's tokens", "sequence": "a mean over each response's tokens"}
        kl = "the KL is in the reward, not a loss" if self.beta else "no KL"
        return (
            f"{self.name}: {kl}; advantages are {divided} by the group's standard deviation; "
            f"{means.get(self.norm, 'a sum over tokens')}"
        )

    def advantages(self, draws: Draws) -> Advantages:
        """(members,) rewards relative to their group, divided by the number of tokens that `norm` names."""
        import torch

        rewards = response_rewards(draws, self.beta)
        if self.scale == "group":
            advantage = group_scaled(rewards, draws.group)
        else:
            advantage = rewards - group_mean(rewards, draws.group)
        if self.norm == "token":
            return Advantages(advantage[draws.response] / (len(draws.sampled) / len(draws.group)))
        if self.norm == "sequence":
            advantage = advantage / draws.sum(torch.ones_like(draws.sampled))
        return Advantages(advantage[draws.response])


class GRPO(GroupFormula, frozen=True, tag="grpo"):
    """Group-relative policy optimization with the KL in the reward, averaged over the tokens of the phase."""

    paper = "2402.03300, sec. 4.1; scale, norm: 2503.20783; clip_high: 2503.14476"
    formula = r"-\frac{1}{\bar n} \sum_t \min(A \rho_t, A\,clip(\rho_t)), \quad A = R_i - \bar R, \quad R = s - \beta u"
    when = "Verified rewards, with the recipes and learning rates that are published for it."
    fails = 'scale = "group" makes prompts on which nearly all responses agree count most.'

    clip: Clip = 0.2
    clip_high: ClipHigh = None

    def ratio(self, rollouts: Rollouts) -> Tensor:
        """(members,) policy over drawing policy."""
        return ratio_of_tokens(rollouts)

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """(responses,) the surrogate to be minimized, summed over each response's tokens, in units of the score."""
        return rollouts.sum(clipped(rollouts.advantage, self.ratio(rollouts), bounds(self.clip, self.clip_high)))

    def beyond(self, rollouts: Rollouts) -> Tensor | None:
        return outside(rollouts.advantage, self.ratio(rollouts), bounds(self.clip, self.clip_high))


class GSPO(GRPO, frozen=True, tag="gspo"):
    """Group sequence policy optimization: GRPO whose ratio is one of the whole response, per token."""

    paper = "2507.18071, eq. 5 and 7"
    formula = r"-\min(A s, A\,clip(s)), \quad s = (\pi(y) / \pi_{old}(y))^{1/n}, \quad A = R_i - \bar R"
    when = "Several updates a phase, and models whose single tokens jump, such as mixtures of experts."
    fails = "A response is cut as a whole, and its ratio moves little: bounds that are made for tokens cut nothing."
    shown = "ratio"

    clip: Clip = 3e-4
    clip_high: ClipHigh = 4e-4
    norm: Norm = "sequence"

    def ratio(self, rollouts: Rollouts) -> Tensor:
        """(members,) the geometric mean of the ratios of the tokens of each response, the same at all of them."""
        import torch

        log_ratio = rollouts.token_logp - rollouts.sampled
        mean = rollouts.sum(log_ratio) / rollouts.sum(torch.ones_like(log_ratio))
        return mean.exp()[rollouts.response]


class CISPO(GroupFormula, frozen=True, tag="cispo"):
    """REINFORCE of groups with importance weights that are cut from above: no token loses its gradient."""

    paper = "2506.13585, eq. 4 and 5; the bound: 2510.13786"
    formula = r"-\frac{1}{\bar n} \sum_t sg(\min(\rho_t, 1 + \epsilon)) A \log\pi_t, \quad A = R_i - \bar R"
    when = "Several updates a phase, where rare tokens that a clip would cut are the ones to learn."
    fails = "Nothing holds a token back once the policy has gone far, but the bound of its weight."
    shown = "__call__"

    clip_high: Annotated[
        float, about("How far above 1 the weight of a token counts, to 1 + clip_high.", also="epsilon_high", gt=0)
    ] = 4.0

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """(responses,) summed over each response's tokens, in units of the score times nats."""
        weight = ratio_of_tokens(rollouts).detach().clamp(max=1 + self.clip_high)
        return rollouts.sum(-weight * rollouts.advantage * rollouts.token_logp)

    def beyond(self, rollouts: Rollouts) -> Tensor | None:
        return ratio_of_tokens(rollouts) > 1 + self.clip_high


class SAPO(GroupFormula, frozen=True, tag="sapo"):
    """Soft adaptive policy optimization: a gate that fades with the ratio, in place of the clip."""

    paper = "2511.20347"
    formula = r"-\frac{1}{n} \sum_t \frac{4}{\tau} \sigma(\tau (\rho_t - 1)) A, \quad A = R_i - \bar R"
    when = "Several updates a phase, where a clip cuts too much of a response or nothing."
    fails = "With tau_neg below tau_pos, tokens of bad responses fade last, which the paper found unstable."
    shown = "__call__"

    norm: Norm = "sequence"
    tau_pos: Annotated[
        float, about("How fast the gate fades where the advantage is above 0.", also="sapo_temperature_pos", gt=0)
    ] = 1.0
    tau_neg: Annotated[
        float, about("How fast it fades where the advantage is below 0.", also="sapo_temperature_neg", gt=0)
    ] = 1.05

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """(responses,) summed over each response's tokens, in units of the score."""
        import torch

        tau = torch.where(rollouts.advantage > 0, self.tau_pos, self.tau_neg)
        gate = (tau * (ratio_of_tokens(rollouts) - 1)).sigmoid() * 4 / tau
        return rollouts.sum(-gate * rollouts.advantage)

"""Objectives of drawn responses on one clipped surrogate: what they share, PPO, RLOO and REINFORCE++.

These three differ in the advantage alone, which is computed once a phase from all of its draws; so no split of a phase
into steps, packs or processes can change it. Held by tests/numbers/test_rollouts.py.
"""

from __future__ import annotations

from abc import abstractmethod
from math import inf
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from preftune.objective.advantage import (
    gae,
    leave_one_out,
    response_rewards,
    return_to_go,
    token_rewards,
    whitened,
)
from preftune.objective.base import Formula
from preftune.objective.responses import Advantages, Draws, Rollouts, Values, required, sum_by
from preftune.table import about

if TYPE_CHECKING:
    from torch import Tensor

KLBeta = Annotated[
    float,
    about(
        "Reward that a nat of KL from the reference costs, token by token; 0: no reference.",
        also="kl_coef init_kl_coef",
        ge=0,
    ),
]
Clip = Annotated[
    Annotated[float, Meta(gt=0)] | None,
    about(
        "How far the ratio to the drawing policy counts, from 1 - clip to 1 + clip; none: without end.",
        also="epsilon cliprange clip_range clip_ratio clip_ratio_low",
    ),
]
ClipHigh = Annotated[
    Annotated[float, Meta(gt=0)] | None,
    about(
        "How far it counts above 1, where that is to be further than below (arXiv 2503.14476); clip if not given.",
        also="epsilon_high clip_ratio_high",
    ),
]


class RolloutFormula(Formula, frozen=True):
    """An objective of drawn responses; it needs a [rollout] table. `advantages` is called once a phase.

    least_responses: how many responses to a prompt it needs; shown: the method that the docs print.
    A token whose advantage is 0 has no gradient.
    """

    kind = "rollouts"
    anchor_keys = ("beta",)
    optimum = "reference times exp(score / beta)"
    least_responses: ClassVar[int] = 1
    shown: ClassVar[str] = "advantages"

    beta: KLBeta = 0.05

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"score", "reference"} if self.beta else {"score"})

    @abstractmethod
    def advantages(self, draws: Draws) -> Advantages:
        """(members,) advantages of a whole phase, which its updates hold fixed."""
        raise NotImplementedError

    def beyond(self, rollouts: Rollouts) -> Tensor | None:
        """(members,) bool, the tokens whose ratio is beyond its bounds; None where there are no bounds."""
        return None


class Clipped(RolloutFormula, frozen=True):
    """The surrogate of PPO, whose ratio is each token's own."""

    clip: Clip = 0.2
    clip_high: ClipHigh = None

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """(responses,) the surrogate to be minimized, summed over each response's tokens, in units of the score."""
        return rollouts.sum(clipped(rollouts.advantage, ratio_of_tokens(rollouts), bounds(self.clip, self.clip_high)))

    def beyond(self, rollouts: Rollouts) -> Tensor | None:
        return outside(rollouts.advantage, ratio_of_tokens(rollouts), bounds(self.clip, self.clip_high))


def ratio_of_tokens(rollouts: Rollouts) -> Tensor:
    """(members,) policy over drawing policy, each token's own."""
    return (rollouts.token_logp - rollouts.sampled).exp()


def bounds(clip: float | None, clip_high: float | None) -> tuple[float, float]:
    """Between which a ratio counts."""
    above = clip if clip_high is None else clip_high
    return -inf if clip is None else 1 - clip, inf if above is None else 1 + above


def clipped(advantage: Tensor, ratio: Tensor, bounds: tuple[float, float]) -> Tensor:
    """(members,) -min(A r, A clip(r)) (PPO, arXiv 1707.06347, eq. 7)."""
    import torch

    loss = -advantage * ratio
    return loss if bounds == (-inf, inf) else torch.maximum(loss, -advantage * ratio.clamp(*bounds))


def outside(advantage: Tensor, ratio: Tensor, bounds: tuple[float, float]) -> Tensor | None:
    """(members,) bool, where `clipped` has no gradient because of the bounds; None without bounds."""
    (low, high), rises = bounds, advantage > 0
    return None if bounds == (-inf, inf) else (rises & (ratio > high)) | (~rises & (ratio < low))


class PPO(Clipped, frozen=True, tag="ppo"):
    """Proximal policy optimization with a value model and generalized advantage estimates."""

    paper = "1707.06347, eq. 7; 1506.02438, eq. 16"
    formula = r"-\sum_t \min(A_t \rho_t, A_t\,clip(\rho_t)), \quad A_t = \sum_s \lambda^{s-t} (r_s + V_{s+1} - V_s)"
    when = "Responses are long and their rewards noisy, so a value model that knows the way there pays for itself."
    fails = "A second model and three more keys: with a poor value model and lam < 1 the gradient is biased."
    states = "ppo: lam = {0.lam:g}, no discount; the KL is in the reward of each token, and advantages are not whitened"

    lam: Annotated[
        float,
        about("Weight of later tokens in an advantage; 1 trusts draws, 0 the values.", also="gae_lambda", ge=0, le=1),
    ] = 0.95
    value_clip: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        about(
            "How far a value may move in a phase before it counts no more, in units of the score.",
            also="cliprange_value",
        ),
    ] = None

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return super().reads | {"value"}

    def advantages(self, draws: Draws) -> Advantages:
        """(members,) advantages, and returns for the value model. Raises ValueError where the draws have no values."""
        value = required(draws.value, "ppo needs a value of each token and none was given")
        advantage = gae(token_rewards(draws, self.beta), value, draws.response, self.lam)
        return Advantages(advantage, advantage + value)

    def value_loss(self, values: Values) -> Tensor:
        """(responses,) half the squared error of the values, summed over each response's tokens.

        A mean over a response's tokens would draw the value of a state towards the returns of the short responses.
        """
        import torch

        loss = (values.value - values.returns) ** 2
        if self.value_clip is not None:
            moved = (values.value - values.old_value).clamp(-self.value_clip, self.value_clip)
            loss = torch.maximum(loss, (values.old_value + moved - values.returns) ** 2)
        return 0.5 * sum_by(values.response, loss, len(values.weight))


class RLOO(Clipped, frozen=True, tag="rloo"):
    """REINFORCE with the other responses to the prompt as the baseline."""

    paper = "2402.14740, eq. 9"
    formula = r"-\sum_t A \rho_t, \quad A = R_i - \frac{1}{K-1} \sum_{j \ne i} R_j, \quad R = s - \beta u"
    when = "The default online: no value model, unbiased, and several responses a prompt."
    fails = "Every token of a response has the same advantage, so long responses learn slowly."
    states = "rloo: the KL is in the reward; the ratio is one of each token, not of the response"
    least_responses = 2

    clip: Clip = None

    def advantages(self, draws: Draws) -> Advantages:
        """(members,) each response's reward minus that of the others to its prompt, at all of its tokens."""
        advantage = leave_one_out(response_rewards(draws, self.beta), draws.group)
        return Advantages(advantage[draws.response])


class ReinforcePP(Clipped, frozen=True, tag="reinforce_pp"):
    """REINFORCE with clipping, whose advantages are returns whitened over the phase."""

    written = "REINFORCE++"
    paper = "2501.03262"
    formula = r"-\sum_t \min(A_t \rho_t, A_t\,clip(\rho_t)), \quad A_t = whiten(\sum_{s \ge t} r_s)"
    when = "One response a prompt, and prompts of like difficulty."
    fails = "The baseline is the same for all prompts, so easy prompts push up and hard ones down."
    states = "reinforce_pp: the KL is in the reward of each token; whitened over the phase, not a step"

    def advantages(self, draws: Draws) -> Advantages:
        """(members,) what is still to come at each token, with mean 0 and standard deviation 1 over the phase."""
        return Advantages(whitened(return_to_go(token_rewards(draws, self.beta), draws.response)))

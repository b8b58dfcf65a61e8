"""Objectives of the same margin with another link: squares, hinges, coins, and those that tie each side down."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from preftune.objective.base import PairFormula
from preftune.objective.maths import hinge, kl_of_coins, logistic, square
from preftune.objective.pairs import Beta
from preftune.objective.responses import Pairs

if TYPE_CHECKING:
    from torch import Tensor


class IPO(PairFormula, frozen=True, tag="ipo"):
    """Identity preference optimization: the margin is led to a number, not to infinity."""

    anchor_keys = ("tau",)
    paper = "2310.12036, eq. 17; the norm per token: its authors in huggingface/trl issue 1265"
    formula = r"(h - 1/(2\tau))^2"
    optimum = "with per_token = false: reference times exp(probability to beat the pairs' source / tau)"
    when = "Labels are nearly deterministic, or noisy enough that DPO would overfit them."
    fails = "Two losses go by this name: per_token = true divides each log-ratio by its tokens, false does not."

    tau: Annotated[float, Meta(gt=0, description="Strength of the anchor; the margin is led to 1 / (2 tau).")] = 0.1
    per_token: Annotated[bool, Meta(description="Log-ratios per token, as is common; false: summed.")] = True

    @property
    def variant(self) -> str:
        return (
            f"ipo per token: log-ratios are divided by their tokens and are led to 1 / (2 tau) = {0.5 / self.tau:g}"
            if self.per_token
            else f"ipo summed: log-ratios are sums over tokens and are led to 1 / (2 tau) = {0.5 / self.tau:g} nats"
        )

    @property
    def length_normalized(self) -> bool:  # type: ignore[override]
        return self.per_token

    def __call__(self, pairs: Pairs) -> Tensor:
        mean = pairs.chosen.mean_log_ratio - pairs.rejected.mean_log_ratio
        return square(mean if self.per_token else pairs.margin, 1 / (2 * self.tau))


class Hinge(PairFormula, frozen=True, tag="hinge"):
    """A hinge on the reward difference (RSO): pairs that are far enough apart are left alone."""

    written = "hinge loss"
    paper = "2309.06657"
    formula = r"\max(0, 1 - \beta h)"
    optimum = "margin 1 / beta where one order is the likelier"
    when = "You do not want to push pairs that are already correct."
    fails = "It learns who is preferred, not how often: probabilities of preference are lost."
    states = "hinge: RSO's, on beta times the margin against the reference; SLiC's, without one, is slic"

    beta: Beta = 0.1

    def __call__(self, pairs: Pairs) -> Tensor:
        return hinge(self.beta * pairs.margin)


class EXO(PairFormula, frozen=True, tag="exo"):
    """Exact optimization: the reverse KL from the policy's preference to the smoothed label."""

    paper = "2402.00856"
    formula = r"KL(\sigma(\beta h) \,\|\, (1-\epsilon, \epsilon))"
    optimum = "beta h = log((1 - eps) / eps) for certain labels"
    when = "The policy is too small to cover all good responses and should settle on one."
    fails = "eps alone sets the margin, and a policy on the wrong side of a pair gets little gradient to come back."
    states = "exo: KL(policy || label), and the label leaves {0.eps:g} to rejected"

    beta: Beta = 0.1
    eps: Annotated[float, Meta(gt=0, lt=0.5, description="Probability that the label leaves to rejected.")] = 1e-3

    def __call__(self, pairs: Pairs) -> Tensor:
        return kl_of_coins(self.beta * pairs.margin, log((1 - self.eps) / self.eps))


class SPPO(PairFormula, frozen=True, tag="sppo"):
    """Self-play: each log-ratio is led to plus or minus 1 / (2 beta), the odds of a win over the policy before."""

    paper = "2405.00675"
    formula = r"\frac{1}{2}(u_w - \frac{1}{2\beta})^2 + \frac{1}{2}(u_l + \frac{1}{2\beta})^2"
    optimum = "log-ratio 1 / (2 beta) of chosen and -1 / (2 beta) of rejected"
    when = "Rounds of self-play, the reference being the policy of the round before."
    fails = "At beta = 0.001 the first gradients are 500 a nat: the clipping decides the step."

    beta: Annotated[float, Meta(gt=0, description="Inverse step of self-play; log-ratios go to 1 / (2 beta).")] = 1e-3

    @property
    def variant(self) -> str:
        return f"sppo: half of each square, so a mean of two responses, which are led to +-{0.5 / self.beta:g} nats"

    def __call__(self, pairs: Pairs) -> Tensor:
        target = 0.5 / self.beta
        return 0.5 * square(pairs.chosen.log_ratio, target) + 0.5 * square(pairs.rejected.log_ratio, -target)


class CalDPO(PairFormula, frozen=True, tag="cal_dpo"):
    """The logistic of the margin, and each log-ratio led to the scale of a reward."""

    written = "Cal-DPO"
    paper = "2412.14516, with the factors of its published code"
    formula = r"-\log\sigma(h) + \frac{1}{2}(u_w - \frac{1}{2\beta})^2 + \frac{1}{2}(u_l + \frac{1}{2\beta})^2"
    optimum = "close to 1 / (2 beta) and -1 / (2 beta)"
    when = "Chosen responses lose probability under DPO and should not."
    fails = "beta stands only in the target of the squares, and at 0.001 these are all that counts."
    states = "cal_dpo: half of each square, and beta stands in their target only, not before h"

    beta: Annotated[float, Meta(gt=0, description="Log-ratios are led to plus and minus 1 / (2 beta).")] = 1e-3

    def __call__(self, pairs: Pairs) -> Tensor:
        target = 0.5 / self.beta
        tied = 0.5 * square(pairs.chosen.log_ratio, target) + 0.5 * square(pairs.rejected.log_ratio, -target)
        return logistic(pairs.margin) + tied


class APODown(PairFormula, frozen=True, tag="apo_down"):
    """Anchored: lowers both responses, the rejected one more. For a policy better than its data."""

    written = "APO-down"
    paper = "2408.06266, plus 1 so that it is never negative"
    formula = r"\sigma(\beta u_w) + 1 - \sigma(\beta h)"
    optimum = "none that is finite: the margin grows while both log-ratios fall"
    when = "The policy already gives better responses than those called chosen."
    fails = "It lowers chosen by design: with data better than the policy, use apo_zero."
    states = "apo_down: 1 is added, which changes no gradient"

    beta: Beta = 0.1

    def __call__(self, pairs: Pairs) -> Tensor:
        return (self.beta * pairs.chosen.log_ratio).sigmoid() + (-self.beta * pairs.margin).sigmoid()

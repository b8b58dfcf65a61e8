"""Objectives of single responses called good or bad, or given a score. u is a response's log-ratio."""

from __future__ import annotations

from math import exp, log, log1p
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta
from msgspec.structs import replace

from preftune.objective.base import RatingFormula, scores_of
from preftune.objective.maths import logistic, square, weighted_mean
from preftune.objective.pairs import Beta
from preftune.objective.responses import Ratings
from preftune.table import about

if TYPE_CHECKING:
    from torch import Tensor

Weight = Annotated[float, Meta(gt=0)]
Quantile = Annotated[float, Meta(gt=0, description="Strength of the anchor, in units of the score's quantile.")]


class KTO(RatingFormula, frozen=True, tag="kto"):
    """Kahneman-Tversky: good and bad responses against the policy's drift, on an S-shaped scale of value."""

    reads = frozenset({"reference", "label", "mismatched"})
    needs_full_step = True
    paper = "2402.01306"
    formula = r"\lambda_D \sigma(-\beta (u - z_0)) \text{ good}, \quad \lambda_U \sigma(\beta (u - z_0)) \text{ bad}"
    optimum = "none that is finite: up where good votes, each times its weight, outnumber bad ones, down where not"
    when = "Thumbs up and down, without pairs, even with far more of the one than of the other."
    fails = "With pairs at hand DPO does better, and its KL does not follow beta: only the number of steps bounds it."

    beta: Beta = 0.1
    good_weight: Annotated[
        Weight | None,
        about(
            "Weight of good responses; with neither given, the rarer side of the training rows is raised.",
            also="desirable_weight kto_desirable_weight kto_chosen_weight",
        ),
    ] = None
    bad_weight: Annotated[
        Weight | None,
        about(
            "Weight of bad responses; 1 if only the other is given.",
            also="undesirable_weight kto_undesirable_weight kto_rejected_weight",
        ),
    ] = None

    @property
    def variant(self) -> str:
        return (
            f"kto: weights {self.good_weight or 1:g} good, {self.bad_weight or 1:g} bad; drift of the whole step, from "
            "other prompts' responses; the mean is over all rows, not over each class"
        )

    def __call__(self, ratings: Ratings) -> Tensor:
        """(responses,) one value a response."""
        import torch

        reward = self.beta * (ratings.responses.log_ratio - drift(ratings))
        good, bad = self.good_weight or 1.0, self.bad_weight or 1.0
        return torch.where(ratings.good, good * (-reward).sigmoid(), bad * reward.sigmoid())

    def with_data_defaults(self, good: float, bad: float) -> KTO:
        """Both weights given, so that one class as a whole weighs what the other does if none was."""
        weights = (self.good_weight or 1.0, self.bad_weight or 1.0)
        if self.good_weight is None and self.bad_weight is None and good > 0 and bad > 0:
            weights = (max(1.0, bad / good), max(1.0, good / bad))
        return replace(self, good_weight=weights[0], bad_weight=weights[1])


def drift(ratings: Ratings) -> Tensor:
    """z_0: mean log-ratio of mismatched responses, not below 0, without gradient; a scalar in nats (KTO).

    0, its least value, where a step has none, as where all its prompts are one.
    """
    if ratings.mismatched is None:
        raise ValueError("KTO needs mismatched responses to estimate the drift and was given none")
    log_ratio = ratings.mismatched.log_ratio.detach()
    return log_ratio.sum().clamp(min=0) / max(1, len(log_ratio))


class APOZero(RatingFormula, frozen=True, tag="apo_zero"):
    """Anchored at the reference: raises good responses, lowers bad ones, each on its own."""

    written = "APO-zero"
    paper = "2408.06266, plus 1 a response so that it is never negative"
    formula = r"2\sigma(-\beta u) \text{ good}, \quad 2\sigma(\beta u) \text{ bad}"
    optimum = "none that is finite: the sign of the majority, as for KTO"
    when = "Good responses are better than what the policy gives now; pairs or thumbs alike."
    fails = "It sees no pair, so whatever makes all responses to one prompt good or bad is learned as well."
    states = "apo_zero: 1 is added, which changes no gradient"

    beta: Beta = 0.1

    def __call__(self, ratings: Ratings) -> Tensor:
        """(responses,) one value a response; twice, because a pair's two ratings have half of its weight each."""
        reward = self.beta * ratings.responses.log_ratio
        return 2 * (-_signed(reward, ratings)).sigmoid()


class BCO(RatingFormula, frozen=True, tag="bco"):
    """Binary classifier: good against bad by the reward alone, around the middle of the two."""

    needs_full_step = True
    paper = "2404.04656; its shift is the step's own, where the paper keeps a running mean"
    formula = (
        r"-2\log\sigma(\beta u - \delta) \text{ good}, \quad -2\log\sigma(\delta - \beta u) \text{ bad}, "
        r"\quad \delta = (\overline{\beta u}_{good} + \overline{\beta u}_{bad}) / 2"
    )
    optimum = "beta u - delta = log-odds that a judge calls the response good"
    when = "Thumbs up and down, or pairs whose chosen responses must not lose probability."
    fails = "It sees no pair, so differences between prompts in how often they are called good are learned as well."
    states = "bco: delta is the step's own, halfway between the mean rewards of good and bad; no running mean"

    beta: Beta = 0.1

    def __call__(self, ratings: Ratings) -> Tensor:
        """(responses,) one value a response; twice, because a pair's two ratings have half of its weight each."""
        reward = self.beta * ratings.responses.log_ratio
        return 2 * logistic(_signed(reward - middle(reward, ratings), ratings))


def middle(reward: Tensor, ratings: Ratings) -> Tensor:
    """delta: halfway between the mean reward of good and of bad responses, without gradient; a scalar (BCO)."""
    reward = reward.detach()
    classes = [ratings.weight * members for members in (ratings.good, ~ratings.good) if bool(members.any())]
    means = (weighted_mean(reward, weight) for weight in classes)
    return sum(means, reward.new_zeros(())) / max(1, len(classes))


def _signed(reward: Tensor, ratings: Ratings) -> Tensor:
    import torch

    return torch.where(ratings.good, reward, -reward)


class QRPO(RatingFormula, frozen=True, tag="qrpo"):
    """Quantile reward: the log-ratio is regressed on the score's quantile, for which the constant is known."""

    reads = frozenset({"reference", "score", "quantile"})
    paper = "2507.08068, with the exact log Z"
    formula = r"(s - \beta\log Z - \beta u)^2, \quad \log Z = \log\beta + 1/\beta + \log(1 - e^{-1/\beta})"
    optimum = "reference times exp(quantile / beta), where the value is 0"
    when = "Single responses, each scored by its quantile among the reference's own responses to that prompt."
    fails = "Scores have to be such quantiles, uniform on 0 to 1 under the reference; raw scores spoil the constant."
    states = "qrpo: log Z = {0.log_z:.4g}, exact for scores that are quantiles"

    beta: Quantile = 0.1

    def __call__(self, ratings: Ratings) -> Tensor:
        """(responses,) one value a response; `score` is its quantile, from 0 to 1."""
        responses = ratings.responses
        return square(scores_of(responses) - self.beta * self.log_z, self.beta * responses.log_ratio)

    @property
    def log_z(self) -> float:
        """log of the mean of exp(quantile / beta) under the reference."""
        return log(self.beta) + 1 / self.beta + log1p(-exp(-1 / self.beta))


class DRO(RatingFormula, frozen=True, tag="dro"):
    """Direct reward optimization: the log-ratio is regressed on the score above its mean."""

    reads = frozenset({"reference", "score"})
    needs_full_step = True
    paper = "2405.19107, with one value V for the step in closed form instead of a second network"
    formula = r"\frac{1}{2}(s - V - \beta u)^2, \quad V = \overline{s - \beta u}"
    optimum = "reference times exp(score / beta), where V = beta log Z and the value is 0"
    when = "Single responses with scores that are comparable between prompts, for example centred on each."
    fails = "V is one number: prompts whose scores are high throughout are learned as good responses."
    states = "dro: one V for the whole step, in closed form"

    beta: Annotated[float, Meta(gt=0, description="Strength of the anchor, in units of the score.")] = 1.0

    def __call__(self, ratings: Ratings) -> Tensor:
        """(responses,) one value a response. The gradient is V's too, because V minimizes what it stands in."""
        residual = scores_of(ratings.responses) - self.beta * ratings.responses.log_ratio
        return 0.5 * square(residual, weighted_mean(residual.detach(), ratings.weight))

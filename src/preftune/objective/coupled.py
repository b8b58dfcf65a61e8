"""Objectives of pairs whose value depends on the other pairs of the step, and WPO, which weighs each pair by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from preftune.objective.base import EmaFormula, PairFormula, expected
from preftune.objective.maths import logistic, weighted_mean
from preftune.objective.pairs import DPO, Beta
from preftune.objective.responses import Pairs, Responses, required

if TYPE_CHECKING:
    from torch import Tensor

ROUNDED = 1e-3  # nats by which fp32 may round margins apart
LEAST = 1e-3  # share of beta below which beta_dpo does not let it fall


class AOT(PairFormula, frozen=True, tag="aot"):
    """Alignment by optimal transport: the whole distribution of rewards above another, place by place."""

    reads = frozenset({"reference"})
    needs_full_step = True
    paper = "2406.05882"
    formula = r"-\log\sigma(\beta (a_{(i)} - b_{(i)})), \quad a, b \text{ sorted}"
    optimum = "stochastic dominance; with one pair a step it is DPO"
    when = "The distribution of rewards matters more than each pair."
    fails = "Order is that of the step: small steps compare little, and a pair is pushed for another one's sake."

    beta: Beta = 0.01
    paired: Annotated[
        bool, Meta(description="true: policy margins against reference margins; false: chosen against rejected.")
    ] = True

    @property
    def variant(self) -> str:
        return f"aot {'paired' if self.paired else 'unpaired'}: sorted over the whole step, not over a pack"

    def __call__(self, pairs: Pairs) -> Tensor:
        """(pairs,) the value at each pair's place in the order of the upper distribution."""
        import torch

        if self.paired:
            above = pairs.chosen.logp - pairs.rejected.logp
            below = pairs.chosen.ref_logp - pairs.rejected.ref_logp
        else:
            above, below = pairs.chosen.log_ratio, pairs.rejected.log_ratio
        order = above.argsort(stable=True)
        values = logistic(self.beta * (above[order] - below.sort().values))
        return torch.zeros_like(values).index_put((order,), values)


class BetaDPO(EmaFormula, frozen=True, tag="beta_dpo"):
    """DPO whose beta grows with the step's mean margin, without the pairs furthest from the running mean of margins."""

    written = "β-DPO"
    reads = frozenset({"reference", "votes", "ema"})
    needs_full_step = True
    momentum = 0.9
    paper = "2407.08639; keeps the likeliest pairs where the paper draws them"
    formula = (
        r"-\log\sigma(\beta' h), \quad \beta' = \beta (1 + \alpha (\bar h - m)), \quad m \leftarrow 0.9 m + 0.1 \bar h"
    )
    optimum = "DPO's at the beta that results"
    when = "The gap in quality between chosen and rejected differs much from step to step."
    fails = "Margins are in nats and alpha multiplies them: at 0.6 one nat more than usual is 60 % more beta."
    states = "beta_dpo: alpha = {0.alpha:g} a nat of margin above the running mean (momentum {0.momentum:g})"

    beta: Beta = 0.1
    alpha: Annotated[float, Meta(ge=0, description="How much beta follows the mean margin.")] = 0.6
    keep: Annotated[
        float, Meta(gt=0, le=1, description="Share of the step's pairs kept, nearest to the usual margin.")
    ] = 0.8

    def __call__(self, pairs: Pairs) -> Tensor:
        """(pairs,) one value a pair, 0 for those left out, so scaled that the mean is over those kept."""
        margin = pairs.margin.detach()
        ema = self.ema_input(pairs) if pairs.ema is None else pairs.ema
        mask = self._nearest((margin - ema).abs())
        step_beta = self.beta * (1 + self.alpha * (weighted_mean(margin, pairs.weight * mask) - ema))
        step_beta = step_beta.clamp(min=LEAST * self.beta)
        loss = expected(lambda ordered: logistic(step_beta * ordered.margin), pairs, pairs.preferred)
        return loss * mask * pairs.weight.sum() / (pairs.weight * mask).sum().clamp(min=1e-30)

    def ema_input(self, pairs: Pairs) -> Tensor:
        """The step's mean margin, in nats."""
        return weighted_mean(pairs.margin.detach(), pairs.weight)

    def _nearest(self, distance: Tensor) -> Tensor:
        """1 for the pairs kept, 0 for the others. Ties with the last pair kept stay, so that order decides nothing.

        Differences of the size of rounding are ties: before the first update all margins are 0, and none is further
        from the mean than the others.
        """
        if not len(distance):
            return distance
        count = max(1, round(self.keep * len(distance)))
        return (distance <= distance.sort().values[count - 1] + ROUNDED).to(distance)


class DrDPO(PairFormula, frozen=True, tag="dr_dpo"):
    """Distributionally robust DPO: pairs with a high loss, likely mislabelled, count less."""

    written = "Dr. DPO"
    needs_full_step = True
    paper = "2407.07880"
    formula = r"-\tau \log \overline{\exp(-l / \tau)}, \quad l = -\log\sigma(\beta h)"
    optimum = "DPO's as tau grows; for a small tau that of the pairs already fitted"
    when = "Some labels are wrong and it is not known how many."
    fails = "A small tau also gives up right pairs that are merely hard."

    beta: Beta = 0.1
    tau: Annotated[float, Meta(gt=0, description="Loss difference at which a pair counts e times less.")] = 1.0

    def __call__(self, pairs: Pairs) -> Tensor:
        """(pairs,) the step's robust mean, the same number for each pair."""
        loss = expected(DPO(beta=self.beta), pairs, pairs.preferred)
        share = (pairs.weight / pairs.weight.sum().clamp(min=1e-30)).clamp(min=1e-30).log()
        return (-self.tau * (share - loss / self.tau).logsumexp(0)).expand_as(loss)


class WPO(PairFormula, frozen=True, tag="wpo"):
    """DPO with pairs weighted by how likely the policy itself is to give them."""

    reads = frozenset({"reference", "votes", "sharpness"})
    paper = "2406.11827, with the clamp of its published code"
    formula = (
        r"-w \log\sigma(\beta h), \quad w = \min(1, e^{c_w + c_l}), \; c = \overline{\log\pi_t - \log\sum_v \pi_v^2}"
    )
    optimum = "DPO's with the pairs so weighted"
    when = "The pairs come from another model than the policy."
    fails = "Weights are small for text unlike the policy's own: with all pairs foreign it hardly trains."
    states = "wpo: weights stop at 1 and carry no gradient"

    beta: Beta = 0.1

    def __call__(self, pairs: Pairs) -> Tensor:
        log_weight = sharpness(pairs.chosen) + sharpness(pairs.rejected)
        return log_weight.exp().clamp(max=1) * logistic(self.beta * pairs.margin)


def sharpness(responses: Responses) -> Tensor:
    """(responses,) the mean over tokens of log pi(y_t) - log sum_v pi_v^2, without gradient, in nats a token."""
    message = "this objective needs the sharpness of the policy on each response and was given none"
    return required(responses.sharpness, message)

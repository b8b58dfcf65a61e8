"""DPO and what differs from it in the argument of the logistic: h is the margin, u_w and u_l the two log-ratios."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from preftune.objective.base import PairFormula
from preftune.objective.maths import logistic
from preftune.objective.responses import Pairs, Responses
from preftune.table import about

if TYPE_CHECKING:
    from torch import Tensor

Beta = Annotated[
    float, about("Strength of the anchor: reward is beta times the log-ratio.", also="pref_beta dpo_beta rl_beta", gt=0)
]
Flip = Annotated[
    float,
    about(
        "Share of the labels taken to be the wrong way round.", also="label_smoothing dpo_label_smoothing", ge=0, lt=0.5
    ),
]


class DPO(PairFormula, frozen=True, tag="dpo"):
    """Direct preference optimization; with `flip` the conservative form (cDPO), for labels with noise.

    `flip` moves the votes, so it acts where votes do: in the loss (`loss_of`), not in a direct call.
    """

    paper = "2305.18290, eq. 7; flip: ericmitchell.ai/cdpo.pdf"
    formula = r"-\log\sigma(\beta h), \quad h = u_w - u_l"
    optimum = "reference times exp(reward / beta); with flip, each log-odds becomes that of the smoothed label"
    when = "The default: you have pairs, the reference is close to them, and you want the closed-form optimum."
    fails = "With certain labels the optimum is at infinity, and both responses may lose probability to a third one."

    beta: Beta = 0.1
    flip: Flip = 0.0

    def __post_init__(self) -> None:
        check_flip(self.flip)

    @property
    def variant(self) -> str:
        return (
            f"dpo with flip {self.flip:g} is cDPO: (1 - flip) l(h) + flip l(-h), h of log-probs summed over tokens"
            if self.flip
            else "dpo: log-probs are summed over the tokens of a response, its end token included, not averaged"
        )

    def vote(self, preferred: Tensor) -> Tensor:
        return preferred if self.flip == 0 else preferred * (1 - 2 * self.flip) + self.flip

    def __call__(self, pairs: Pairs) -> Tensor:
        return logistic(self.beta * pairs.margin)


def dpo_loss(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor, beta: float = 0.1
) -> Tensor:
    """Mean DPO loss of some pairs, a scalar in nats (arXiv 2305.18290, eq. 7), for those who bring their own loop.

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


class RobustDPO(PairFormula, frozen=True, tag="robust"):
    """DPO made unbiased where a known share of the labels is flipped at random."""

    written = "robust DPO"
    paper = "2403.00409"
    formula = r"\frac{-(1-\epsilon)\log\sigma(\beta h) + \epsilon\log\sigma(-\beta h)}{1-2\epsilon}"
    optimum = "on labels flipped with probability flip: what DPO reaches on the clean ones"
    when = "The share of flipped labels is known, and many pairs average its larger variance away."
    fails = "Each pair's value is unbounded below: a memorized pair is pushed without end."
    states = "robust: divided by 1 - 2 flip, and unlike cDPO (dpo with flip) not bounded below"

    beta: Beta = 0.1
    flip: Flip = 0.1

    def __post_init__(self) -> None:
        check_flip(self.flip)

    def __call__(self, pairs: Pairs) -> Tensor:
        reward = self.beta * pairs.margin
        return ((1 - self.flip) * logistic(reward) - self.flip * logistic(-reward)) / (1 - 2 * self.flip)


class LengthNormalizedDPO(PairFormula, frozen=True, tag="ln_dpo"):
    """DPO on log-ratios per token, the recipe of Tülu 3 and OLMo."""

    written = "length-normalized DPO"
    length_normalized = True
    paper = "2411.15124"
    formula = r"-\log\sigma(\beta (u_w/n_w - u_l/n_l))"
    optimum = "log-ratio of each response equal to n (reward / beta + c), c fixed by normalization"
    when = "Chosen responses are longer than rejected ones for no good reason."
    fails = "beta is per token: 5 is usual, and 0.1 hardly trains at all."
    states = "ln_dpo: beta = {0.beta:g} multiplies log-ratios per token, for which 5 is usual; not sums"

    beta: Annotated[float, Meta(gt=0, description="Strength of the anchor, per token; 5 is usual.")] = 5.0

    def __call__(self, pairs: Pairs) -> Tensor:
        return logistic(self.beta * (pairs.chosen.mean_log_ratio - pairs.rejected.mean_log_ratio))


class RDPO(PairFormula, frozen=True, tag="r_dpo"):
    """DPO that charges for each token by which one response is longer than the other."""

    written = "R-DPO"
    paper = "2403.19159"
    formula = r"-\log\sigma(\beta h + \alpha (n_w - n_l))"
    optimum = "reference times exp((reward - alpha n) / beta)"
    when = "Judges are known to favor length, and by about how much."
    fails = "alpha has to match the judges' bias: too much of it makes the policy terse."
    states = "r_dpo: alpha = {0.alpha:g} is charged for each token more that chosen has, so it shortens"

    beta: Beta = 0.1
    alpha: Annotated[float, Meta(ge=0, description="Reward taken away per token; shortens.")] = 0.05

    def __call__(self, pairs: Pairs) -> Tensor:
        longer = pairs.chosen.tokens - pairs.rejected.tokens
        return logistic(self.beta * pairs.margin + self.alpha * longer)


class DPOPositive(PairFormula, frozen=True, tag="dpo_positive"):
    """DPO with a penalty wherever chosen is less probable than under the reference (Smaug)."""

    written = "DPO-Positive"
    paper = "2402.13228"
    formula = r"-\log\sigma(\beta (h - \lambda \max(0, -u_w)))"
    optimum = "DPO's, where that does not lower any chosen response"
    when = "Chosen and rejected share most of their tokens, as in edits and proofs, and DPO lowers both."
    fails = "A penalty of 50 outweighs the preference itself on every pair whose chosen response has dropped."
    states = "dpo_positive: the penalty (lambda) stands inside beta, as in its paper"

    beta: Beta = 0.3
    penalty: Annotated[float, Meta(ge=0, description="Weight of the drop of chosen below the reference.")] = 50.0

    def __call__(self, pairs: Pairs) -> Tensor:
        drop = (-pairs.chosen.log_ratio).relu()
        return logistic(self.beta * (pairs.margin - self.penalty * drop))


class HyPO(PairFormula, frozen=True, tag="hypo"):
    """DPO that follows the reference only where it already prefers chosen."""

    paper = "2602.11902"
    formula = r"-\log\sigma(\beta ((\log\pi_w - \log\pi_l) - \max(0, \log\pi_{ref,w} - \log\pi_{ref,l})))"
    optimum = "DPO's on pairs that the reference orders rightly, CPO's on the others"
    when = "The reference is weak and ranks many pairs the wrong way round."
    fails = "Where the reference is overruled nothing anchors the policy to it."

    beta: Beta = 0.1

    def __call__(self, pairs: Pairs) -> Tensor:
        margin = pairs.chosen.logp - pairs.rejected.logp
        ref_margin = pairs.chosen.ref_logp - pairs.rejected.ref_logp
        return logistic(self.beta * (margin - ref_margin.relu()))


def check_flip(flip: float) -> None:
    """Raise ValueError where labels would carry no information, or the opposite one."""
    if not 0 <= flip < 0.5:
        raise ValueError("flip must be at least 0 and below 0.5: at one half a label says nothing")

"""Objectives without a reference: half the memory, and nothing to hold the policy but its rate and its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from preftune.objective.base import PairFormula
from preftune.objective.maths import box_cox, hinge, log_odds, logistic
from preftune.objective.responses import Pairs
from preftune.table import about

if TYPE_CHECKING:
    from torch import Tensor

Imitation = Annotated[
    float, about("Weight of imitating chosen: its negative log-prob per token.", also="cpo_alpha", ge=0)
]
PerToken = Annotated[float, Meta(gt=0, description="Factor from log-prob per token to reward.")]
Gamma = Annotated[
    Annotated[float, Meta(ge=0)] | None,
    about("Reward difference to exceed; instead of gamma_ratio.", also="simpo_gamma"),
]
GammaRatio = Annotated[
    Annotated[float, Meta(ge=0)] | None, Meta(description="The same as a share of beta, gamma / beta; give one.")
]


class SLiC(PairFormula, frozen=True, tag="slic"):
    """A hinge on the log-probs of the two responses, and imitation of chosen."""

    paper = "2305.10425, the imitation per token and of chosen"
    formula = r"\max(0, \delta - \log\pi_w + \log\pi_l) - \lambda \log\pi_w / n_w"
    optimum = "log-probs delta apart"
    when = "A baseline that is easy to reason about, with imitation as the only anchor."
    fails = "It compares summed log-probs, so short responses are favored from the start."
    states = "slic: the hinge is on summed log-probs; imitation is of chosen, per token"

    reads = frozenset({"votes"})
    imitates = True
    anchor_keys = ()
    gap: Annotated[float, Meta(ge=0, description="Difference of log-probs, in nats, that is enough.")] = 1.0
    nll_weight: Imitation = 1.0

    def __call__(self, pairs: Pairs) -> Tensor:
        apart = pairs.chosen.logp - pairs.rejected.logp
        return hinge(apart, self.gap) - self.nll_weight * pairs.chosen.mean_logp


class CPO(PairFormula, frozen=True, tag="cpo"):
    """Contrastive: DPO under a uniform reference, and imitation of chosen."""

    paper = "2401.08417, the imitation per token"
    formula = r"-\log\sigma(\beta (\log\pi_w - \log\pi_l)) - \lambda \log\pi_w / n_w"
    optimum = "without imitation: proportional to exp(reward / beta), whatever the policy began as"
    when = "Translation and other tasks where chosen is near perfect, and memory for a reference is missing."
    fails = "Without the anchor it shortens: a sum over fewer tokens is larger."
    states = "cpo: log-probs are summed over tokens in the comparison, and per token in the imitation"

    reads = frozenset({"votes"})
    imitates = True
    beta: Annotated[float, Meta(gt=0, description="Factor from log-prob to reward.")] = 0.1
    nll_weight: Imitation = 1.0

    def __call__(self, pairs: Pairs) -> Tensor:
        apart = pairs.chosen.logp - pairs.rejected.logp
        return logistic(self.beta * apart) - self.nll_weight * pairs.chosen.mean_logp


class TargetFormula(PairFormula, frozen=True):
    """An objective of the log-prob per token that asks for a reward difference of gamma.

    usual_ratio: gamma / beta where neither key is given.
    """

    reads = frozenset({"votes"})
    length_normalized = True
    usual_ratio: ClassVar[float]

    beta: PerToken
    gamma: Gamma = None
    gamma_ratio: GammaRatio = None

    def __post_init__(self) -> None:
        if self.gamma is not None and self.gamma_ratio is not None:
            raise ValueError("gamma and gamma_ratio are two names of one quantity; give one of them")

    @property
    def target(self) -> float:
        """gamma, by whichever name it was given."""
        ratio = self.usual_ratio if self.gamma_ratio is None else self.gamma_ratio
        return self.beta * ratio if self.gamma is None else self.gamma

    @property
    def variant(self) -> str:
        return f"{self.name}: gamma = {self.target:g}, which is gamma / beta = {self.target / self.beta:g}"


class SimPO(TargetFormula, frozen=True, tag="simpo"):
    """Simple preference optimization: the log-prob per token is the reward, and a margin gamma is asked for."""

    usual_ratio = 0.5
    paper = "2405.14734, eq. 6"
    formula = r"-\log\sigma(\beta (\log\pi_w / n_w - \log\pi_l / n_l) - \gamma)"
    optimum = "set by beta and gamma alone, with no memory of the policy that training began from"
    when = "No memory for a reference, and lengths that differ for no reason."
    fails = "Only the learning rate holds it: a little too much and the text degenerates. gamma is not gamma / beta."

    beta: PerToken = 2.0

    def __call__(self, pairs: Pairs) -> Tensor:
        return logistic(self.beta * (pairs.chosen.mean_logp - pairs.rejected.mean_logp) - self.target)


class AlphaPO(TargetFormula, frozen=True, tag="alpha_po"):
    """SimPO with a bent reward, (1 - p^-alpha) / alpha of the mean token probability p."""

    usual_ratio = 0.1
    paper = "2501.03884"
    formula = r"-\log\sigma(\beta (r_w - r_l) - \gamma), \quad r = (1 - \bar\pi^{-\alpha}) / \alpha"
    optimum = "SimPO's with the bent reward; alpha = 0 is SimPO"
    when = "SimPO lowers chosen too far, or not far enough: alpha decides where the gradient goes."
    fails = "With a large alpha the least probable responses take the whole gradient."

    beta: PerToken = 2.5
    alpha: Annotated[float, Meta(ge=-10, le=10, description="Bend of the reward; 0 is SimPO.")] = 0.25

    def __call__(self, pairs: Pairs) -> Tensor:
        chosen, rejected = (box_cox(side.mean_logp, self.alpha) for side in (pairs.chosen, pairs.rejected))
        return logistic(self.beta * (chosen - rejected) - self.target)


class ORPO(PairFormula, frozen=True, tag="orpo"):
    """Odds ratio: imitation of chosen and, in the same step, a push of its odds above those of rejected."""

    paper = "2403.07691, eq. 6 and 7"
    formula = r"-\log\pi_w / n_w - \lambda \log\sigma(odds_w - odds_l), \quad odds = \log(\bar\pi / (1 - \bar\pi))"
    optimum = "imitation of chosen, tilted by the odds"
    when = "No SFT model exists yet: one stage does both."
    fails = "Imitation outweighs the preference at the usual odds_weight: it is SFT first of all."
    states = "orpo: {0.odds_weight:g} times the odds ratio; imitation is of the response alone, per token"

    reads = frozenset({"votes"})
    imitates = True
    anchor_keys = ()
    length_normalized = True
    odds_weight: Annotated[float, Meta(ge=0, description="Weight of the odds ratio against imitation.")] = 0.1

    def __call__(self, pairs: Pairs) -> Tensor:
        ratio = log_odds(pairs.chosen.mean_logp) - log_odds(pairs.rejected.mean_logp)
        return -pairs.chosen.mean_logp + self.odds_weight * logistic(ratio)


class SimPER(PairFormula, frozen=True, tag="simper"):
    """Difference of inverse perplexities; nothing to choose."""

    paper = "2502.00883"
    formula = r"\bar\pi_l - \bar\pi_w, \quad \bar\pi = e^{\log\pi / n}"
    optimum = "none inside: the probability per token of chosen goes to 1 and of rejected to 0"
    when = "No time to tune anything but the learning rate."
    fails = "Nothing holds the policy: train for one pass at a small rate."

    reads = frozenset({"votes"})
    imitates = True
    anchor_keys = ()
    length_normalized = True

    def __call__(self, pairs: Pairs) -> Tensor:
        return pairs.rejected.mean_logp.exp() - pairs.chosen.mean_logp.exp()

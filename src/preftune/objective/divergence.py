"""DPO under another divergence than the reverse KL, and under explicit scores of the two responses."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from preftune.objective.base import PairFormula, scores_of
from preftune.objective.maths import bounded_exp, box_cox, kl_of_coins, logistic, square
from preftune.objective.pairs import Beta
from preftune.objective.responses import Pairs
from preftune.table import about

if TYPE_CHECKING:
    from torch import Tensor

Eta = Annotated[float, Meta(gt=0, description="Factor from the given scores to rewards.")]
DIVERGENCES = {
    "js_divergence": "objective.divergence=js",
    "alpha_divergence": "objective.divergence=alpha",
    "reverse_kl": "objective=dpo",
}
SMALLEST = 1e-30  # a score difference below this, or of the wrong sign, says nothing


class FDPO(PairFormula, frozen=True, tag="f_dpo"):
    """DPO where the policy is held to the reference by another f-divergence."""

    written = "f-DPO"
    paper = "2309.16240"
    formula = r"-\log\sigma(\beta (f'(e^{u_w}) - f'(e^{u_l})))"
    optimum = "beta f'(policy / reference) = reward + c, c fixed by normalization"
    when = "Variety matters: the forward KL and Jensen-Shannon keep more of the reference than the reverse KL."
    fails = "Ratios of whole responses overflow: exponents stop at 80 and a pair beyond has no gradient there."

    beta: Beta = 0.1
    divergence: Annotated[
        Literal["forward_kl", "js", "alpha"],
        about("Forward KL, Jensen-Shannon, or alpha.", also="f_divergence_type", elsewhere=DIVERGENCES),
    ] = "forward_kl"
    alpha: Annotated[
        Annotated[float, Meta(gt=0, lt=1)] | None,
        about(
            "Order of the alpha-divergence, 0.5 if not given; 0 is the reverse KL, 1 the forward; in TRL 1 minus it.",
            also="f_alpha_divergence_coef",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.alpha is not None and self.divergence != "alpha":
            raise ValueError('alpha has an effect only with divergence = "alpha"')

    @property
    def variant(self) -> str:
        return (
            "f_dpo: alpha is the paper's, (1 - u^-alpha) / alpha; elsewhere it is 1 minus this"
            if self.divergence == "alpha"
            else ""
        )

    def __call__(self, pairs: Pairs) -> Tensor:
        return logistic(self.beta * (self._slope(pairs.chosen.log_ratio) - self._slope(pairs.rejected.log_ratio)))

    def _slope(self, log_ratio: Tensor) -> Tensor:
        """f'(exp(log_ratio)) without its constant."""
        if self.divergence == "forward_kl":
            return -bounded_exp(-log_ratio)
        if self.divergence == "js":
            return log(2) - logistic(log_ratio)
        return box_cox(log_ratio, 0.5 if self.alpha is None else self.alpha)


class ChiPO(PairFormula, frozen=True, tag="chi_po"):
    """DPO under chi-squared plus KL: pessimistic about responses that the reference hardly ever gives."""

    written = "χPO"
    paper = "2407.13399"
    formula = r"-\log\sigma(clip_{2R}(\beta (\phi(u_w) - \phi(u_l)))), \quad \phi(u) = e^u + u"
    optimum = "beta (policy / reference + log of it) = reward + c, c fixed by normalization"
    when = "Few pairs, where DPO would over-optimize."
    fails = "The pull of e^u stops at u = 20, and a `bound` below the true rewards stops learning early."

    beta: Beta = 0.1
    bound: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="R: the reward difference is clipped to plus and minus 2 R; not clipped if not given."),
    ] = None

    def __call__(self, pairs: Pairs) -> Tensor:
        chosen, rejected = (bounded_exp(u, 20.0) + u for u in (pairs.chosen.log_ratio, pairs.rejected.log_ratio))
        reward = self.beta * (chosen - rejected)
        return logistic(reward if self.bound is None else reward.clamp(-2 * self.bound, 2 * self.bound))


class ODPO(PairFormula, frozen=True, tag="odpo"):
    """DPO with an offset: the better the score of chosen, the larger the margin asked for."""

    reads = frozenset({"reference", "score"})
    paper = "2402.10571"
    formula = r"-\log\sigma(\beta h - \alpha \log(s_w - s_l))"
    optimum = "DPO's, each reward difference larger by alpha log(s_w - s_l)"
    when = "Scores tell large preferences from small ones."
    fails = "It takes the logarithm: scores of another scale ask for another alpha, and equal scores teach nothing."
    states = "odpo: the offset is {0.alpha:g} log(s_w - s_l), so scores 1 apart ask for none"

    beta: Beta = 0.1
    alpha: Annotated[float, Meta(ge=0, description="Weight of the logarithm of the score difference.")] = 1.0

    def __call__(self, pairs: Pairs) -> Tensor:
        better_by = (scores_of(pairs.chosen) - scores_of(pairs.rejected)).clamp(min=SMALLEST)
        return logistic(self.beta * pairs.margin - self.alpha * better_by.log())


class RPO(PairFormula, frozen=True, tag="rpo"):
    """Reward-aware: the policy's preference is led to the one that the scores imply (NVIDIA's RPO)."""

    reads = frozenset({"reference", "score"})
    paper = "2502.00203"
    formula = r"KL(\sigma(\eta (s_w - s_l)) \,\|\, \sigma(\beta h))"
    optimum = "reference times exp(eta score / beta), where the value is 0"
    when = "Scores of a good reward model are at hand for both responses."
    fails = "It repeats the scores' errors, and eta / beta has to be found for their scale."

    beta: Beta = 0.1
    eta: Eta = 1.0
    reverse: Annotated[bool, Meta(description="Take the KL from the policy's preference to the scores'.")] = False

    @property
    def variant(self) -> str:
        return (
            f"rpo: NVIDIA's, KL({'policy || scores' if self.reverse else 'scores || policy'}) of preferences; "
            "DPO with imitation is regularized_dpo or irpo"
        )

    def __call__(self, pairs: Pairs) -> Tensor:
        target = self.eta * (scores_of(pairs.chosen) - scores_of(pairs.rejected))
        reward = self.beta * pairs.margin
        return kl_of_coins(reward, target) if self.reverse else kl_of_coins(target, reward)


class REBEL(PairFormula, frozen=True, tag="rebel"):
    """Regression of the reward difference on the score difference."""

    reads = frozenset({"reference", "score"})
    paper = "2404.16767"
    formula = r"(\beta h - \eta (s_w - s_l))^2"
    optimum = "reference times exp(eta score / beta), where the value is 0"
    when = "Scores of a good reward model are at hand, and their differences count, not only their signs."
    fails = "Squares let a few pairs with huge score differences decide the step."

    beta: Beta = 0.1
    eta: Eta = 1.0

    def __call__(self, pairs: Pairs) -> Tensor:
        return square(self.beta * pairs.margin, self.eta * (scores_of(pairs.chosen) - scores_of(pairs.rejected)))

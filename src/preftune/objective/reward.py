"""The reward model's objective: scores whose differences are the log-odds of the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from preftune.objective.base import Formula
from preftune.objective.maths import logistic
from preftune.objective.responses import NO_SCORE, Comparisons, required
from preftune.table import about

if TYPE_CHECKING:
    from torch import Tensor

MARGIN = "Times the difference of the rows' scores, this is the lead that chosen must have; 0 reads no scores."
CENTER = "Weight of the squared sum of the two scores, which keeps scores near 0; 0.01 is usual."


class Reward(Formula, frozen=True, tag="reward"):
    """Bradley-Terry reward model: a score of a response, of which differences are the log-odds of a preference.

    The model has a score in place of logits, and what is exported is a reward model and no language model.
    """

    written = "reward modeling"
    kind = "comparisons"
    reads = frozenset({"votes", "score"})
    anchor_keys = ()
    paper = "2203.02155, eq. 1; margin: 2307.09288, eq. 2; center: 2312.09244"
    formula = r"-\log\sigma(r_w - r_l - \alpha (s_w - s_l)) + \lambda (r_w + r_l)^2"
    optimum = "score differences equal to the log-odds of the labels; a constant is free unless center is above 0"
    when = "A reward is to be reused: for PPO and RLOO, best-of-n, or to rank data."
    fails = "It is right about responses like those of its pairs; a policy that climbs it soon writes others."

    margin: Annotated[float, about(MARGIN, ge=0)] = 0.0
    center: Annotated[float, about(CENTER, also="center_rewards_coefficient", ge=0)] = 0.0

    @property
    def variant(self) -> str:
        lead = f", and is to be {self.margin:g} times the difference of the rows' scores" if self.margin else ""
        return f"reward: the score is read at the last token of a response, its end token{lead}"

    @property
    def uses(self) -> frozenset[str]:
        return self.reads if self.margin else self.reads - {"score"}

    def __call__(self, comparisons: Comparisons) -> Tensor:
        """(pairs,) in nats. Raises ValueError where `margin` asks for scores that the rows do not give."""
        lead = comparisons.margin
        if self.margin:
            lead = lead - self.margin * required(comparisons.better_by, NO_SCORE)
        return logistic(lead) + self.center * (comparisons.chosen + comparisons.rejected).square()

"""What an objective sees: log-probabilities of responses, arranged as pairs, ratings, rankings or demos; or scores of
a reward model, arranged as comparisons.

Every tensor is fp32 or fp64: training gives fp64 on the host. Only `logp` and a model's scores carry a
gradient. Examples have a `weight`; the step divides the weighted sum of an objective's values by the number of rows of
the whole step, so a ranking of K responses shown as all its pairs gives each pair 1 / C(K, 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


NO_REFERENCE = "this objective needs a reference and none was given"
NO_SCORE = "this objective needs an explicit score of each response and the rows give none"


def required(values: Tensor | None, message: str) -> Tensor:
    """The values without gradient. Raises ValueError with this message where there are none."""
    if values is None:
        raise ValueError(message)
    return values.detach()


@dataclass(frozen=True, slots=True)
class Responses:
    """Responses under the policy and the reference; every field is (responses,).

    logp: log-probability of each response summed over its tokens, each times its weight where tokens have weights, in
        nats; the one field with a gradient.
    tokens: how many tokens that sum has.
    reference: that log-probability under the reference, or None where there is none. Formulas read `ref_logp`.
    score: an explicit score of each response where the rows give one, else None.
    sharpness: mean over tokens of log pi(y_t) - log sum_v pi_v^2 under the policy, in nats a token, without gradient;
        None unless the objective reads it (WPO, arXiv 2406.11827).
    weight_sum: the sum of the tokens' weights, by which a mean over tokens divides; None where each token counts 1.
    """

    logp: Tensor
    tokens: Tensor
    reference: Tensor | None = None
    score: Tensor | None = None
    sharpness: Tensor | None = None
    weight_sum: Tensor | None = None

    @property
    def ref_logp(self) -> Tensor:
        """Reference log-probability, detached: the one place where the reference loses its gradient."""
        return required(self.reference, NO_REFERENCE)

    @property
    def log_ratio(self) -> Tensor:
        """log pi(y|x) - log pi_ref(y|x), in nats."""
        return self.logp - self.ref_logp

    @property
    def mean_logp(self) -> Tensor:
        """Log-probability per token, in nats."""
        return self.logp / self.counted

    @property
    def mean_log_ratio(self) -> Tensor:
        """Log-ratio per token, in nats."""
        return self.log_ratio / self.counted

    @property
    def counted(self) -> Tensor:
        """By what a mean over tokens divides: the sum of the tokens' weights, which is their number where each is 1."""
        return self.tokens if self.weight_sum is None else self.weight_sum

    def each(self, change: Callable[[Tensor], Tensor]) -> Responses:
        """These responses with every field that is present replaced by a function of it."""
        values = (getattr(self, field.name) for field in fields(self))
        return Responses(*(None if value is None else change(value) for value in values))  # type: ignore[arg-type]

    def __getitem__(self, index: Tensor) -> Responses:
        """The responses at `index` (any shape), in that order."""
        return self.each(lambda field: field[index])


@dataclass(frozen=True, slots=True)
class Pairs:
    """Chosen against rejected. Fields of `chosen` and `rejected`, `weight` and `preferred` are (pairs,).

    preferred: probability that chosen is truly the better one (1.0 unless the rows carry votes).
    ema: running mean of the objective's `ema_input` over the steps before this one; None before the first step, and for
    objectives without one (see `EmaFormula`).
    """

    chosen: Responses
    rejected: Responses
    weight: Tensor
    preferred: Tensor
    ema: float | None = None

    @property
    def margin(self) -> Tensor:
        """h_theta: chosen log-ratio minus rejected log-ratio (DPO, arXiv 2305.18290, eq. 7), in nats."""
        return self.chosen.log_ratio - self.rejected.log_ratio


@dataclass(frozen=True, slots=True)
class Ratings:
    """Responses called good or bad. `good` (bool) and `weight` are (responses,).

    mismatched: responses under prompts that they do not belong to, from which KTO estimates the drift; None unless the
    objective reads them.
    """

    responses: Responses
    good: Tensor
    weight: Tensor
    mismatched: Responses | None = None


@dataclass(frozen=True, slots=True)
class Rankings:
    """K responses a prompt. `group`, `rank` (1 best, equal for ties) are (responses,); `weight` is (groups,).

    group: index 0..groups-1 of the prompt that each response belongs to; responses of one group stand together.
    """

    responses: Responses
    group: Tensor
    rank: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Demos:
    """Responses to imitate; `weight` is (responses,)."""

    responses: Responses
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Drawn responses token by token, as an online objective sees them in an update.

    Members are the tokens of all responses, response after response. `weight` is (responses,), the others are
    (members,).

    token_logp: log-probability of each token under the policy, in nats; the one field with a gradient.
    sampled: that log-probability when the response was drawn.
    advantage: how much better the response did from this token on than expected (`RolloutFormula.advantages`).
    response: index 0..responses-1 of the response that each token belongs to.
    """

    token_logp: Tensor
    sampled: Tensor
    advantage: Tensor
    response: Tensor
    weight: Tensor

    def sum(self, values: Tensor) -> Tensor:
        """(members,) -> (responses,): sum over the tokens of each response."""
        return sum_by(self.response, values, len(self.weight))


@dataclass(frozen=True, slots=True)
class Values:
    """What the value model says of drawn tokens. `weight` is (responses,), the others are (members,) as in `Rollouts`.

    value: V of the state before each token, in units of the score; the one field with a gradient.
    old_value: V when the phase was drawn; returns: what it should have been (`Advantages.returns`).
    """

    value: Tensor
    old_value: Tensor
    returns: Tensor
    response: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Draws:
    """All that a phase has drawn, fp64 and without gradient, from which advantages follow.

    sampled, reference, value: (members,), log-probability of each token when it was drawn and under the reference, in
        nats, and the value of the state before it, in units of the score; reference and value are None where the
        objective reads none.
    response: (members,) index of each token's response; the responses of a prompt stand together.
    group: (responses,) index 0..groups-1 of the prompt of each response.
    score: (responses,) what a reward model, a function or a verifier says of each response.
    ended: (responses,) bool, whether the end token was drawn; the others were cut at the limit.
    """

    sampled: Tensor
    reference: Tensor | None
    value: Tensor | None
    response: Tensor
    group: Tensor
    score: Tensor
    ended: Tensor

    @property
    def ref_logp(self) -> Tensor:
        """(members,) under the reference. Raises ValueError where there is none."""
        return required(self.reference, NO_REFERENCE)

    def sum(self, values: Tensor) -> Tensor:
        """(members,) -> (responses,): sum over the tokens of each response."""
        return sum_by(self.response, values, len(self.group))


@dataclass(frozen=True, slots=True)
class Advantages:
    """What follows from the draws of a phase, (members,) each: numbers that its updates hold fixed.

    returns: what the value model is to say of each token; None for an objective without one.
    """

    advantage: Tensor
    returns: Tensor | None = None


def sum_by(index: Tensor, values: Tensor, count: int) -> Tensor:
    """(n,) -> (count,): sum of the values that share an index."""
    return values.new_zeros(count).index_add(0, index, values)


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Chosen against rejected as a reward model scores them; every field is (pairs,).

    chosen, rejected: its scores, with gradient.
    preferred: as in `Pairs`.
    better_by: by how much the explicit score of chosen is above that of rejected, or None where the rows give none.
    """

    chosen: Tensor
    rejected: Tensor
    weight: Tensor
    preferred: Tensor
    better_by: Tensor | None = None

    @property
    def margin(self) -> Tensor:
        """Score of chosen minus score of rejected, in nats: the log-odds that chosen is preferred."""
        return self.chosen - self.rejected

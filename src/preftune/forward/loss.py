"""The loss of some rows, and its derivative by the log-probability of each response.

The objective never sees the model: it is given detached log-probabilities, and the derivative is what travels back
(forward.py). Held by tests/numbers/test_step.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan

import torch
from torch import Tensor

from preftune.forward.examples import Examples, RankingsAs
from preftune.objective import loss_of, parts
from preftune.objective.base import EmaFormula, ObjectiveTable
from preftune.objective.responses import Responses
from preftune.tokens.groups import TokenGroup


@dataclass(frozen=True, slots=True)
class LossOutput:
    """The loss of some rows and its derivative by each response's logp.

    value: sum over the examples of weight times value; d_logp: (responses,) fp64, what travels back into the model;
    examples: the rows as the objective saw them, without gradient.
    """

    value: float
    d_logp: Tensor
    examples: Examples


@dataclass(frozen=True)
class Loss:
    """How log-probabilities become a loss.

    rankings_as: which pairs a ranking gives; ema: running mean of each part of the objective, None where it has none or
    there was no step yet.
    """

    objective: ObjectiveTable
    rankings_as: RankingsAs
    ema: tuple[float | None, ...] = ()

    @property
    def reads(self) -> frozenset[str]:
        """What the objective uses beyond logp, tokens and weights (see `Formula.reads`)."""
        return frozenset().union(*(part.reads for _, part in parts(self.objective)))

    @property
    def needs_full_step(self) -> bool:
        """Whether the loss of a row depends on the other rows of the step."""
        return any(part.needs_full_step for _, part in parts(self.objective))

    def __call__(
        self, groups: Sequence[TokenGroup], responses: Responses, mismatched: Responses | None = None
    ) -> LossOutput:
        """The loss of these rows together. responses: (responses,) in the order of the groups, without gradient."""
        responses = replace(responses, score=_scores(groups))
        leaf = responses.logp.clone().requires_grad_()
        total = self.total(Examples(groups, replace(responses, logp=leaf), self.rankings_as, mismatched))
        (d_logp,) = torch.autograd.grad(total, [leaf])
        return LossOutput(float(total.detach()), d_logp, Examples(groups, responses, self.rankings_as, mismatched))

    def total(self, examples: Examples) -> Tensor:
        """Sum over the examples of weight times value, over all parts of the objective; a scalar."""
        total = examples.responses.logp.new_zeros(())
        for i, (factor, part) in enumerate(parts(self.objective)):
            table = getattr(examples, part.kind)
            if self.ema and "ema" in part.reads:
                table = replace(table, ema=self.ema[i])
            total = total + factor * (table.weight * loss_of(part, table)).sum()
        return total

    def with_ema(self, ema: tuple[float | None, ...]) -> Loss:
        """The loss that knows these running means."""
        return replace(self, ema=ema)

    def updated_ema(self, examples: Examples) -> tuple[float | None, ...]:
        """`ema` after a step with these examples."""
        updated: list[float | None] = []
        for i, (_, part) in enumerate(parts(self.objective)):
            mean = self.ema[i] if self.ema else None
            if isinstance(part, EmaFormula) and len(examples.pairs.weight):
                value = float(part.ema_input(examples.pairs))
                mean = value if mean is None else part.momentum * mean + (1 - part.momentum) * value
            updated.append(mean)
        return tuple(updated)


def _scores(groups: Sequence[TokenGroup]) -> Tensor:
    """(responses,) explicit scores, fp64, NaN where a row has none; `Examples` shows no objective a NaN."""
    scores = [score for g in groups for score in g.scores or [nan] * len(g.responses)]
    return torch.tensor(scores, dtype=torch.float64)

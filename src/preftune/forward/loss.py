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

from preftune.errors import UserError
from preftune.forward.examples import Examples, RankingsAs
from preftune.objective import loss_of, parts
from preftune.objective.base import EmaFormula, ObjectiveTable
from preftune.objective.responses import Responses
from preftune.tokens.groups import TokenGroup

TOKENS = "tokens"  # among what a loss reads: the log-probability of each token, and not of a response alone


@dataclass(frozen=True, slots=True)
class LossOutput:
    """The loss of some rows and its derivative by each response's logp.

    value: sum over the examples of weight times value; d_logp: (responses,) fp64, what travels back into the model, or
    (members,) where the loss reads each token; examples: the rows as the objective saw them, without gradient.
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
        """What the objective uses beyond logp, tokens and weights (see `Formula.reads`), and TOKENS."""
        formulas = [part for _, part in parts(self.objective)]
        by_token = frozenset({TOKENS} if any(part.kind == "rollouts" for part in formulas) else ())
        return by_token.union(*(part.reads for part in formulas))

    @property
    def reads_tokens(self) -> bool:
        """Whether the derivative is by the log-probability of each token, and not by that of a response."""
        return TOKENS in self.reads

    @property
    def needs_full_step(self) -> bool:
        """Whether the loss of a row depends on the other rows of the step."""
        return any(part.needs_full_step for _, part in parts(self.objective))

    def __call__(
        self,
        groups: Sequence[TokenGroup],
        responses: Responses,
        mismatched: Responses | None = None,
        token_logp: Tensor | None = None,
    ) -> LossOutput:
        """The loss of these rows together. responses: (responses,) in the order of the groups, without gradient;
        token_logp: (members,) of all their tokens, which a loss reads that reads tokens."""
        responses = replace(responses, score=_scores(groups))
        examples = Examples(groups, responses, self.rankings_as, mismatched)
        if self.reads_tokens:
            assert token_logp is not None
            leaf = token_logp.detach().double().cpu().requires_grad_()
            total = self.total(replace(examples, token_logp=leaf))
            examples = replace(examples, token_logp=leaf.detach())
        else:
            leaf = responses.logp.clone().requires_grad_()
            total = self.total(replace(examples, responses=replace(responses, logp=leaf)))
        if not total.requires_grad:
            raise UserError("the objective's values do not depend on log-probabilities.", location="objective",
                            hint="Make them of the tensors that it is given, without detach() or numpy.")  # fmt: skip
        (d_logp,) = torch.autograd.grad(total, [leaf])
        return LossOutput(float(total.detach()), d_logp, examples)

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

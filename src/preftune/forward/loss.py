"""A pack through the policy and the reference, and its log-probabilities through the objective.

The objective never sees the model: the loss takes detached log-probabilities of responses and returns its derivative by
each of them, and this derivative is what travels back (forward.py). Held by tests/numbers/test_step.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan

import numpy as np
import torch
from torch import Tensor

from preftune.distributed import SINGLE_PROCESS, Distributed
from preftune.forward.examples import Examples, RankingsAs, mismatch
from preftune.model.policy import Policy
from preftune.objective import loss_of, parts
from preftune.objective.base import EmaFormula, ObjectiveTable
from preftune.objective.responses import Responses
from preftune.pack.batch import Batch, collate
from preftune.pack.plan import Pack, Packing
from preftune.reference.reference import Reference
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

    rankings_as: which pairs a ranking gives; longest: tokens that a mismatched prompt and response may have;
    ema: running mean of each part of the objective, None where it has none or there was no step yet.
    """

    objective: ObjectiveTable
    rankings_as: RankingsAs
    longest: int = 0
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

    def extra(self, groups: Sequence[TokenGroup]) -> list[TokenGroup]:
        """The mismatched responses that these rows take together."""
        return mismatch(groups, self.longest) if "mismatched" in self.reads else []


def _scores(groups: Sequence[TokenGroup]) -> Tensor:
    """(responses,) explicit scores, fp64, NaN where a row has none; `Examples` shows no objective a NaN."""
    scores = [score for g in groups for score in g.scores or [nan] * len(g.responses)]
    return torch.tensor(scores, dtype=torch.float64)


@dataclass(frozen=True)
class Models:
    """What a pass goes through, and with whom. packing: of rows that no plan knows, such as mismatched ones."""

    policy: Policy
    reference: Reference
    judge: Loss
    packing: Packing
    dist: Distributed = SINGLE_PROCESS

    def batch(self, groups: Sequence[TokenGroup], pack: Pack) -> Batch:
        """A pack of some of these groups, where the policy is."""
        return collate([groups[i] for i in pack], self.policy.device, self.policy.multiple)

    def with_ema(self, ema: tuple[float | None, ...]) -> Models:
        """The same with an objective that knows these running means."""
        return replace(self, judge=replace(self.judge, ema=ema))


@dataclass(frozen=True, slots=True)
class Scored:
    """A pack after both models. logp: (responses,) with its gradient; scores: the same and all else, fp64, on the host;
    tokens: through the policy; shared: tokens that sharing saved."""

    logp: Tensor
    scores: Responses
    tokens: int
    shared: int


def score(engine: Models, batch: Batch) -> Scored:
    """One pack through both models."""
    policy, weights = engine.policy, token_weights(batch.groups, engine.policy.device)
    sharpness = None
    if "sharpness" in engine.judge.reads:
        token_logp, found = policy.token_logp_and_statistics(batch)
        each = torch.ones_like(found.squares) if weights is None else weights.to(found.squares.dtype)
        sharpness = batch.sum((token_logp.detach() - found.squares) * each) / batch.sum(each)
    else:
        token_logp = policy.token_logp(batch)
    logp = summed(batch, token_logp, weights)
    token_reference = engine.reference.token_logp(batch)
    reference = None if token_reference is None else summed(batch, token_reference.to(logp.dtype), weights)
    tokens = batch.sum(torch.ones_like(token_logp, requires_grad=False))
    weight_sum = None if weights is None else batch.sum(weights.to(logp.dtype))
    scores = Responses(logp, tokens, reference, sharpness=sharpness, weight_sum=weight_sum).in_double()
    return Scored(logp, scores, batch.tokens, batch.tokens_naive - batch.tokens)


def summed(batch: Batch, token_values: Tensor, weights: Tensor | None) -> Tensor:
    """(members,) -> (responses,): per-token values, times the weights of `token_weights`."""
    return batch.sum(token_values if weights is None else token_values * weights.to(token_values.dtype))


def token_weights(groups: Sequence[TokenGroup], device: torch.device) -> Tensor | None:
    """(members,) what each token counts; None where every one counts 1."""
    if all(group.token_weights is None for group in groups):
        return None
    found = [w for g in groups for w in g.token_weights or [np.ones(len(r), np.float32) for r in g.responses]]
    return torch.from_numpy(np.concatenate(found)).to(device)

"""A pack through the policy and the reference, and its scores through the objective.

The objective never sees the model. It is given detached log-probabilities of responses and answers with the derivative
of the loss by each; these coefficients are what travels back (passes.py).
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
from preftune.objective import Objective, parts
from preftune.objective.base import PairFormula
from preftune.objective.responses import Responses
from preftune.pack.batch import Batch
from preftune.pack.plan import Pack, Packing
from preftune.reference.reference import Reference
from preftune.tokens.groups import TokenGroup


@dataclass(frozen=True)
class Loss:
    """How log-probabilities become a loss. rankings_as: pairs of a ranking;
    longest: tokens that a mismatched prompt and response may have;
    usual: running mean of what each part of the objective follows, None where it follows nothing or nothing yet."""

    objective: Objective
    rankings_as: RankingsAs
    longest: int
    ema: tuple[float | None, ...] = ()

    @property
    def needs(self) -> set[str]:
        """What the objective asks for beyond logp, tokens and reference."""
        return {need for _, part in parts(self.objective) for need in part.needs}

    @property
    def coupled(self) -> bool:
        return any(part.coupled for _, part in parts(self.objective))

    def extra(self, groups: Sequence[TokenGroup]) -> list[TokenGroup]:
        """The mismatched responses that judging these rows together takes."""
        return mismatch(groups, self.longest) if "mismatched" in self.needs else []

    def total(self, views: Examples) -> Tensor:
        """Sum over the examples of weight times value, over all parts of the objective; a scalar."""
        summed = views.scores.logp.new_zeros(())
        for at, (factor, part) in enumerate(parts(self.objective)):
            view = getattr(views, part.kind)
            if part.momentum and self.ema:
                view = replace(view, ema=self.ema[at])
            summed = summed + factor * (view.weight * part(view)).sum()
        return summed

    def updated_ema(self, views: Examples) -> tuple[float | None, ...]:
        """`usual` after a step whose examples are these."""
        found: list[float | None] = []
        for at, (_, part) in enumerate(parts(self.objective)):
            mean = self.ema[at] if self.ema else None
            if isinstance(part, PairFormula) and part.momentum and len(views.pairs.weight):
                now = float(part.ema_input(views.pairs))
                mean = now if mean is None else part.momentum * mean + (1 - part.momentum) * now
            found.append(mean)
        return tuple(found)


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
        return self.policy.batch([groups[i] for i in pack])

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
    if "sharpness" in engine.judge.needs:
        token_logp, squares = policy.token_logp_and_squares(batch)
        each = torch.ones_like(squares) if weights is None else weights.to(squares.dtype)
        sharpness = batch.sum((token_logp.detach() - squares) * each) / batch.sum(each)
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


@dataclass(frozen=True, slots=True)
class LossOutput:
    """The objective's word on some rows. value: sum of weighted values; coefficients: (responses,) its derivative by
    the logp of each."""

    value: float
    coefficients: Tensor
    views: Examples


def ask(
    judge: Loss, groups: Sequence[TokenGroup], scores: Responses, mismatched: Responses | None = None
) -> LossOutput:
    """Ask the objective about these rows together. scores: of their responses, in the order of the groups."""
    scores = replace(scores, score=given_scores(groups))
    leaf = scores.logp.clone().requires_grad_()
    value = judge.total(Examples(groups, replace(scores, logp=leaf), judge.rankings_as, mismatched))
    (coefficients,) = torch.autograd.grad(value, [leaf])
    return LossOutput(float(value.detach()), coefficients, Examples(groups, scores, judge.rankings_as, mismatched))


def given_scores(groups: Sequence[TokenGroup]) -> Tensor:
    """(responses,) explicit scores of the rows, fp64, NaN where a row has none; `Views` lets no objective see those."""
    found = [score for g in groups for score in g.scores or [nan] * len(g.responses)]
    return torch.tensor(found, dtype=torch.float64)

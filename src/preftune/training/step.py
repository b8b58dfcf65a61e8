"""A pack through the policy and the reference, and its scores through the objective.

The objective never sees the model. It is given detached log-probabilities of responses and answers with the derivative
of the loss by each; these coefficients are what travels back (passes.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from preftune.data.groups import TokenGroup
from preftune.model.policy import Policy
from preftune.objective import Objective, parts
from preftune.objective.aggregate import Aggregate, Plain
from preftune.objective.arrange import RankingsAs, Views, mismatch
from preftune.objective.scores import Scores
from preftune.pack.batch import Batch, collate
from preftune.pack.plan import Pack, Packing
from preftune.ranks import ALONE, Ranks
from preftune.reference.reference import Reference


@dataclass(frozen=True)
class Judge:
    """How log-probabilities become a loss. aggregate: weights of a response's tokens; rankings_as: pairs of a ranking;
    longest: tokens that a mismatched prompt and response may have."""

    objective: Objective
    aggregate: Aggregate
    rankings_as: RankingsAs
    longest: int

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

    def total(self, views: Views) -> Tensor:
        """Sum over the examples of weight times value, over all parts of the objective; a scalar."""
        summed = views.scores.logp.new_zeros(())
        for factor, part in parts(self.objective):
            view = getattr(views, part.kind)
            summed = summed + factor * (view.weight * part(view)).sum()
        return summed


@dataclass(frozen=True)
class Engine:
    """What a pass goes through, and with whom. packing: of rows that no plan knows, such as mismatched ones."""

    policy: Policy
    reference: Reference
    judge: Judge
    packing: Packing
    ranks: Ranks = ALONE

    def batch(self, groups: Sequence[TokenGroup], pack: Pack) -> Batch:
        """A pack of some of these groups, where the policy is."""
        return collate([groups[i] for i in pack], self.policy.device)


@dataclass(frozen=True, slots=True)
class Scored:
    """A pack after both models. logp: (responses,) with its gradient; scores: the same and all else, fp64, on the host;
    tokens: through the policy; shared: tokens that sharing saved."""

    logp: Tensor
    scores: Scores
    tokens: int
    shared: int


def score(engine: Engine, batch: Batch) -> Scored:
    """One pack through both models."""
    policy, judge = engine.policy, engine.judge
    sharpness = None
    if "sharpness" in judge.needs:
        token_logp, found = policy.token_logp_and_statistics(batch)
        sharpness = batch.sum(token_logp.detach() - found.squares) / batch.sum(torch.ones_like(found.squares))
    else:
        token_logp = policy.token_logp(batch)
    weights = token_weights(batch.groups, judge.aggregate, policy.device)
    logp = summed(batch, token_logp, weights)
    token_reference = engine.reference.token_logp(batch)
    reference = None if token_reference is None else summed(batch, token_reference.to(logp.dtype), weights)
    tokens = batch.sum(torch.ones_like(token_logp, requires_grad=False))
    scores = Scores(logp, tokens, reference, sharpness=sharpness).in_double()
    return Scored(logp, scores, batch.tokens, batch.tokens_naive - batch.tokens)


def summed(batch: Batch, token_values: Tensor, weights: Tensor | None) -> Tensor:
    """(members,) -> (responses,): per-token values, times the weights of `token_weights`."""
    return batch.sum(token_values if weights is None else token_values * weights.to(token_values.dtype))


def token_weights(groups: Sequence[TokenGroup], aggregate: Aggregate, device: torch.device) -> Tensor | None:
    """(members,) what each token counts; None where all count one. A response stands against its group's shortest."""
    if isinstance(aggregate, Plain):
        return None
    found = []
    for group in groups:
        for at, response in enumerate(group.responses):
            others = [len(r) for i, r in enumerate(group.responses) if i != at]
            seed = zlib.crc32(group.prompt.tobytes() + response.tobytes())
            found.append(aggregate(len(response), min(others, default=len(response)), seed))
    return torch.from_numpy(np.concatenate(found)).to(device)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The objective's word on some rows. value: sum of weighted values; coefficients: (responses,) its derivative by
    the logp of each."""

    value: float
    coefficients: Tensor
    views: Views


def ask(judge: Judge, groups: Sequence[TokenGroup], scores: Scores, mismatched: Scores | None = None) -> Judgement:
    """Ask the objective about these rows together. scores: of their responses, in the order of the groups."""
    scores = replace(scores, score=given_scores(groups))
    leaf = scores.logp.clone().requires_grad_()
    value = judge.total(Views(groups, replace(scores, logp=leaf), judge.rankings_as, mismatched))
    (coefficients,) = torch.autograd.grad(value, [leaf])
    return Judgement(float(value.detach()), coefficients, Views(groups, scores, judge.rankings_as, mismatched))


def given_scores(groups: Sequence[TokenGroup]) -> Tensor | None:
    """(responses,) explicit scores of the rows, fp64, or None where some row has none."""
    if any(group.scores is None for group in groups):
        return None
    return torch.tensor([s for g in groups for s in g.scores or ()], dtype=torch.float64)

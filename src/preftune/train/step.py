"""One update: packs through the policy, scores through the objective, coefficients back through the policy.

The objective never sees the model. It is given detached log-probabilities and answers with the derivative of the
loss by each; these coefficients are what travels back. So an objective that couples the examples of a step is as
exact as any other: it is asked once, about the whole step, and then each pack goes through the model again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from preftune.data.groups import TokenGroup
from preftune.model.policy import Policy
from preftune.objective import Objective
from preftune.objective.arrange import Views
from preftune.objective.combine import parts
from preftune.objective.scores import Scores
from preftune.pack.batch import Batch, collate
from preftune.reference.reference import Reference


@dataclass(frozen=True, slots=True)
class Scored:
    """A pack after both models. token_logp and reference (or None): (members,)."""

    batch: Batch
    token_logp: Tensor
    reference: Tensor | None

    def scores(self, token_logp: Tensor | None = None) -> Scores:
        """Per response, summed over its tokens; of `token_logp` where it is given."""
        own = self.token_logp if token_logp is None else token_logp
        logp = self.batch.sum(own)
        reference = None if self.reference is None else self.batch.sum(self.reference.to(logp.dtype))
        return Scores(
            logp, self.batch.sum(torch.ones_like(self.token_logp)), reference, given_scores(self.batch.groups, logp)
        )


def given_scores(groups: Sequence[TokenGroup], like: Tensor) -> Tensor | None:
    """(responses,) explicit scores of the rows, or None where some row has none."""
    if any(group.scores is None for group in groups):
        return None
    return torch.tensor([s for g in groups for s in g.scores or ()], dtype=like.dtype, device=like.device)


def score(policy: Policy, reference: Reference, groups: Sequence[TokenGroup]) -> Scored:
    """One pack through both models."""
    batch = collate(groups, policy.device)
    return Scored(batch, policy.token_logp(batch), reference.token_logp(batch))


def total(objective: Objective, views: Views) -> Tensor:
    """Sum over the examples of weight times value, over all parts of the objective; a scalar."""
    summed = views.scores.logp.new_zeros(())
    for factor, part in parts(objective):
        view = getattr(views, part.kind)
        summed = summed + factor * (view.weight * part(view)).sum()
    return summed


@dataclass(frozen=True, slots=True)
class Judgement:
    """The objective's word on some packs. value: sum of weighted values; coefficients: its derivative by each
    pack's token_logp, (members,) each; incentive: (responses,) the same averaged over a response's tokens."""

    value: Tensor
    coefficients: list[Tensor]
    incentive: Tensor
    views: Views


def judge(objective: Objective, packs: Sequence[Scored]) -> Judgement:
    """Ask the objective about these packs together."""
    leaves = [pack.token_logp.detach().requires_grad_() for pack in packs]
    scores = _joined([pack.scores(leaf) for pack, leaf in zip(packs, leaves, strict=True)])
    views = Views([group for pack in packs for group in pack.batch.groups], scores)
    value = total(objective, views)
    coefficients = list(torch.autograd.grad(value, leaves))
    pushes = torch.cat([pack.batch.sum(c) for pack, c in zip(packs, coefficients, strict=True)])
    plain = Scores(scores.logp.detach(), scores.tokens, scores.reference, scores.score)
    return Judgement(value.detach(), coefficients, pushes / scores.tokens, Views(views.groups, plain))


def _joined(parts_: Sequence[Scores]) -> Scores:
    if len(parts_) == 1:
        return parts_[0]
    fields = zip(*((s.logp, s.tokens, s.reference, s.score) for s in parts_), strict=True)
    return Scores(*(None if any(p is None for p in field) else torch.cat(field) for field in fields))  # type: ignore


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pack's forward and backward computed, for the meters."""

    judgement: Judgement | None
    tokens: int
    tokens_naive: int


def passes(
    policy: Policy, reference: Reference, objective: Objective, packs: Sequence[Sequence[TokenGroup]], rows: int
) -> list[Pass]:
    """Add the whole step's gradient to the policy's parameters. rows: of the step, its one denominator."""
    if not any(part.coupled for _, part in parts(objective)):
        return [_backward(score(policy, reference, groups), objective, rows) for groups in packs]
    with torch.no_grad():
        scored = [score(policy, reference, groups) for groups in packs]
    whole = judge(objective, scored)
    done = [Pass(whole, 0, 0)]
    for pack, coefficient in zip(scored, whole.coefficients, strict=True):
        torch.autograd.backward(policy.token_logp(pack.batch), coefficient / rows)
        done.append(Pass(None, 2 * pack.batch.tokens, pack.batch.tokens_naive))
    return done


def _backward(scored: Scored, objective: Objective, rows: int) -> Pass:
    judgement = judge(objective, [scored])
    torch.autograd.backward(scored.token_logp, judgement.coefficients[0] / rows)
    return Pass(judgement, scored.batch.tokens, scored.batch.tokens_naive)

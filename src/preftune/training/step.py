"""One update: packs through the policy, scores through the objective, coefficients back through the policy.

The objective never sees the model. It is given detached log-probabilities and answers with the derivative of the
loss by each; these coefficients are what travels back. So an objective that couples the examples of a step is as
exact as any other: it is asked once, about the whole step, and then each pack goes through the model again.
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
from preftune.pack.plan import fill, prefix_rank
from preftune.reference.reference import Reference


@dataclass(frozen=True)
class Judge:
    """How log-probabilities become a loss. aggregate: weights of a response's tokens; rankings_as: pairs of a ranking;
    longest: tokens that a mismatched prompt and response may have; tokens: budget of a pack of those."""

    objective: Objective
    aggregate: Aggregate
    rankings_as: RankingsAs
    longest: int
    tokens: int

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


@dataclass(frozen=True, slots=True)
class Scored:
    """A pack after both models. token_logp, reference and weights (or None): (members,); sharpness: (responses,)."""

    batch: Batch
    token_logp: Tensor
    reference: Tensor | None
    weights: Tensor | None = None
    sharpness: Tensor | None = None

    def scores(self, token_logp: Tensor | None = None) -> Scores:
        """Per response, summed over its tokens; of `token_logp` where it is given."""
        own = self.token_logp if token_logp is None else token_logp
        logp = self._sum(own)
        reference = None if self.reference is None else self._sum(self.reference.to(own.dtype))
        tokens = self.batch.sum(torch.ones_like(own, requires_grad=False))
        return Scores(logp, tokens, reference, given_scores(self.batch.groups, logp), self.sharpness)

    def _sum(self, values: Tensor) -> Tensor:
        return self.batch.sum(values if self.weights is None else values * self.weights.to(values.dtype))


def given_scores(groups: Sequence[TokenGroup], like: Tensor) -> Tensor | None:
    """(responses,) explicit scores of the rows, or None where some row has none."""
    if any(group.scores is None for group in groups):
        return None
    return torch.tensor([s for g in groups for s in g.scores or ()], dtype=like.dtype, device=like.device)


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


def score(policy: Policy, reference: Reference, groups: Sequence[TokenGroup], judge: Judge) -> Scored:
    """One pack through both models."""
    batch = collate(groups, policy.device)
    weights = token_weights(groups, judge.aggregate, policy.device)
    if "sharpness" not in judge.needs:
        return Scored(batch, policy.token_logp(batch), reference.token_logp(batch), weights)
    token_logp, found = policy.token_logp_and_statistics(batch)
    sharp = batch.sum(token_logp.detach() - found.squares) / batch.sum(torch.ones_like(found.squares))
    return Scored(batch, token_logp, reference.token_logp(batch), weights, sharp)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The objective's word on some packs. value: sum of weighted values; coefficients: its derivative by each
    pack's token_logp, (members,) each; incentive: (responses,) the same averaged over a response's tokens."""

    value: Tensor
    coefficients: list[Tensor]
    incentive: Tensor
    views: Views


def ask(judge: Judge, packs: Sequence[Scored], mismatched: Scores | None = None) -> Judgement:
    """Ask the objective about these packs together."""
    leaves = [pack.token_logp.detach().requires_grad_() for pack in packs]
    scores = joined([pack.scores(leaf) for pack, leaf in zip(packs, leaves, strict=True)])
    views = Views([g for pack in packs for g in pack.batch.groups], scores, judge.rankings_as, mismatched)
    value = judge.total(views)
    coefficients = list(torch.autograd.grad(value, leaves))
    pushes = torch.cat([pack.batch.sum(c) for pack, c in zip(packs, coefficients, strict=True)])
    plain = replace(views, scores=replace(scores, logp=scores.logp.detach()))
    return Judgement(value.detach(), coefficients, pushes / scores.tokens, plain)


def joined(scores: Sequence[Scores]) -> Scores:
    """The responses of several packs, one after the other."""
    if len(scores) == 1:
        return scores[0]
    fields = zip(*((s.logp, s.tokens, s.reference, s.score, s.sharpness) for s in scores), strict=True)
    return Scores(*(torch.cat(field) if all(f is not None for f in field) else None for field in fields))  # type: ignore


def score_mismatched(
    policy: Policy, reference: Reference, groups: Sequence[TokenGroup], judge: Judge
) -> tuple[Scores | None, int]:
    """The mismatched responses of these rows under both models, without gradient, and the tokens it took."""
    extra = judge.extra(groups)
    if not extra:
        return None, 0
    near = prefix_rank([g.prompt for g in extra])
    with torch.no_grad():
        packs = fill(range(len(extra)), [g.tokens for g in extra], judge.tokens, near)
        scored = [score(policy, reference, [extra[i] for i in pack], judge) for pack in packs]
        return joined([s.scores() for s in scored]), sum(s.batch.tokens for s in scored)


@dataclass(frozen=True, slots=True)
class Pass:
    """What was computed for some packs of a step: the objective's word, tokens through the model in all passes, and
    tokens that one pass saved by sharing."""

    judgement: Judgement
    tokens: int
    shared: int


def passes(
    policy: Policy, reference: Reference, judge: Judge, packs: Sequence[Sequence[TokenGroup]], rows: int
) -> list[Pass]:
    """Add the whole step's gradient to the policy's parameters. rows: of the step, its one denominator."""
    if not judge.coupled:
        return [_uncoupled(score(policy, reference, groups, judge), judge, rows) for groups in packs]
    with torch.no_grad():
        scored = [score(policy, reference, groups, judge) for groups in packs]
    mismatched, extra = score_mismatched(policy, reference, [g for groups in packs for g in groups], judge)
    whole = ask(judge, scored, mismatched)
    for pack, coefficient in zip(scored, whole.coefficients, strict=True):
        torch.autograd.backward(policy.token_logp(pack.batch), coefficient / rows)
    once = sum(pack.batch.tokens for pack in scored)
    return [Pass(whole, 2 * once + extra, sum(pack.batch.tokens_naive for pack in scored) - once)]


def _uncoupled(scored: Scored, judge: Judge, rows: int) -> Pass:
    judgement = ask(judge, [scored])
    torch.autograd.backward(scored.token_logp, judgement.coefficients[0] / rows)
    return Pass(judgement, scored.batch.tokens, scored.batch.tokens_naive - scored.batch.tokens)

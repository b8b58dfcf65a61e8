"""One update: packs through the policy, scores through the objective, coefficients back through the policy.

The objective never sees the model. It is given detached log-probabilities and answers with the derivative of the
loss by each; these coefficients are what travels back. So an objective that couples the examples of a step is as
exact as any other: it is asked once, about the whole step, and then each pack goes through the model again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan

import numpy as np
import torch
from torch import Tensor

from preftune.data.groups import TokenGroup
from preftune.errors import UserError
from preftune.model.policy import Policy
from preftune.objective import Objective, parts
from preftune.objective.arrange import RankingsAs, Views, mismatch
from preftune.objective.base import PairFormula
from preftune.objective.scores import Scores, joined
from preftune.pack.batch import Batch, collate
from preftune.pack.plan import fill, prefix_rank
from preftune.reference.reference import Reference


@dataclass(frozen=True)
class Judge:
    """How log-probabilities become a loss. rankings_as: pairs of a ranking;
    longest: tokens that a mismatched prompt and response may have; tokens: budget of a pack of those;
    usual: running mean of what each part of the objective follows, None where it follows nothing or nothing yet."""

    objective: Objective
    rankings_as: RankingsAs
    longest: int
    tokens: int
    usual: tuple[float | None, ...] = ()

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
        for at, (factor, part) in enumerate(parts(self.objective)):
            view = getattr(views, part.kind)
            if part.momentum and self.usual:
                view = replace(view, usual=self.usual[at])
            summed = summed + factor * (view.weight * part(view)).sum()
        return summed

    def following(self, views: Views) -> tuple[float | None, ...]:
        """`usual` after a step whose examples are these."""
        found: list[float | None] = []
        for at, (_, part) in enumerate(parts(self.objective)):
            mean = self.usual[at] if self.usual else None
            if isinstance(part, PairFormula) and part.momentum and len(views.pairs.weight):
                now = float(part.followed(views.pairs))
                mean = now if mean is None else part.momentum * mean + (1 - part.momentum) * now
            found.append(mean)
        return tuple(found)


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
        weighed = None if self.weights is None else self.batch.sum(self.weights.to(own.dtype))
        return Scores(logp, tokens, reference, given_scores(self.batch.groups, logp), self.sharpness, weighed)

    def _sum(self, values: Tensor) -> Tensor:
        return self.batch.sum(values if self.weights is None else values * self.weights.to(values.dtype))


def given_scores(groups: Sequence[TokenGroup], like: Tensor) -> Tensor:
    """(responses,) explicit scores of the rows, NaN where a row has none; `Views` lets no objective see those."""
    found = [score for g in groups for score in g.scores or [nan] * len(g.responses)]
    return torch.tensor(found, dtype=like.dtype, device=like.device)


def token_weights(groups: Sequence[TokenGroup], device: torch.device) -> Tensor | None:
    """(members,) what each token counts; None where every one counts 1."""
    if all(group.token_weights is None for group in groups):
        return None
    found = [w for g in groups for w in g.token_weights or [np.ones(len(r), np.float32) for r in g.responses]]
    return torch.from_numpy(np.concatenate(found)).to(device)


def score(policy: Policy, reference: Reference, groups: Sequence[TokenGroup], judge: Judge) -> Scored:
    """One pack through both models."""
    batch = collate(groups, policy.device)
    weights = token_weights(groups, policy.device)
    if "sharpness" not in judge.needs:
        return Scored(batch, policy.token_logp(batch), reference.token_logp(batch), weights)
    token_logp, found = policy.token_logp_and_statistics(batch)
    each = torch.ones_like(found.squares) if weights is None else weights.to(found.squares.dtype)
    sharp = batch.sum((token_logp.detach() - found.squares) * each) / batch.sum(each)
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
    return Judgement(value.detach(), coefficients, pushes / scores.counted, plain)


def score_mismatched(
    policy: Policy, reference: Reference, groups: Sequence[TokenGroup], judge: Judge
) -> tuple[Scores | None, int]:
    """The mismatched responses of these rows under both models, without gradient, and the tokens it took."""
    if "mismatched" not in judge.needs:
        return None, 0
    extra = judge.extra(groups)
    if not extra:
        none = torch.zeros(0, device=policy.device)
        return Scores(none, none, none), 0
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
        again = policy.token_logp(pack.batch)
        _unchanged(pack.token_logp, again, policy)
        torch.autograd.backward(again, coefficient / rows)
    once = sum(pack.batch.tokens for pack in scored)
    return [Pass(whole, 2 * once + extra, sum(pack.batch.tokens_naive for pack in scored) - once)]


def _unchanged(first: Tensor, again: Tensor, policy: Policy) -> None:
    """Raise UserError where a second pass gives other numbers than those that the objective was asked about."""
    half = policy.compute != torch.float32 or policy.module.dtype in (torch.bfloat16, torch.float16)
    off = float((again.detach() - first).abs().max())
    if off > (0.25 if half else 1e-3):  # what is not finite is refused with the update
        raise UserError(
            f"the model gave log-probabilities {off:.2g} nats a token off from those of a moment before.",
            where="model.path",
            mend="Something in it draws at random, such as dropout.",
        )


def _uncoupled(scored: Scored, judge: Judge, rows: int) -> Pass:
    judgement = ask(judge, [scored])
    torch.autograd.backward(scored.token_logp, judgement.coefficients[0] / rows)
    return Pass(judgement, scored.batch.tokens, scored.batch.tokens_naive - scored.batch.tokens)

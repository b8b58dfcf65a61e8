"""A step's packs through the policy and back, on all ranks.

The loss never sees the model. It is given the log-probability of each response, and answers with the derivative of its
value by each of them; `logp.backward(d_logp)` is where that enters the model. Everything else that the loss reads of a
response (its tokens, its reference, its score) is a sum over columns of its group, known before the pass.

A loss that needs the full step is as exact as any other: every pack is scored without gradient, the loss is called
once, and then each pack goes through the model again. Ranks exchange a few numbers a response, and then the gradient.
Held by tests/laws/test_packs.py, tests/laws/test_ranks.py and tests/laws/test_online.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from preftune import signals
from preftune.distributed import Distributed
from preftune.forward.examples import column_of, response_of_tokens
from preftune.forward.loss import Loss, LossOutput
from preftune.forward.scores import PackScores, gather_step, response_places, score_pack, score_step
from preftune.model.columns import idle_packs
from preftune.model.policy import Policy
from preftune.model.verify import draws_at_random
from preftune.objective.responses import Responses, Values
from preftune.objective.rollouts import PPO
from preftune.pack.batch import Batch
from preftune.pack.oom import Groups, OomRetry
from preftune.pack.plan import Pack, Step
from preftune.reference.moving import MovingReference


@dataclass(frozen=True)
class Models:
    """The models of a run. reference: a model only where it moves with the policy; a reference that stays is the column
    `reference` of the groups. value: the value model of PPO."""

    policy: Policy
    reference: MovingReference | None = None
    value: Policy | None = None

    def collate(self, groups: Groups, pack: Pack) -> Batch:
        """The batch of a pack of these groups, as the policy takes it."""
        return self.policy.batch([groups[i] for i in pack])

    def with_reference(self, groups: Groups, step: Step, oom: OomRetry, dist: Distributed) -> Groups:
        """The step's groups with the reference's numbers of now, where it moves; else the groups as they are."""
        return groups if self.reference is None else self.reference.fill(groups, step, oom, dist)


class StepGradient(NamedTuple):
    """A step after its backward pass. tokens: through the policy in all passes of all ranks; shared: saved in one."""

    output: LossOutput
    tokens: int
    shared: int


def step_gradient(
    models: Models, groups: Groups, step: Step, loss: Loss, oom: OomRetry, dist: Distributed
) -> StepGradient:
    """Put the gradient of the step's mean loss into the policy's parameters, on every rank the same."""
    groups = models.with_reference(groups, step, oom, dist)
    backward = _two_passes if loss.needs_full_step else _one_pass
    gradient = backward(models, groups, step, loss, oom, dist)
    models.policy.weights.sum_gradients(dist)
    return gradient


def _one_pass(models: Models, groups: Groups, step: Step, loss: Loss, oom: OomRetry, dist: Distributed) -> StepGradient:
    """Each pack has its own loss, and goes back at once."""
    policy, rows = models.policy, [groups[i] for i in step.order]

    def forward_and_backward(packs: Sequence[Pack]) -> list[tuple[Pack, PackScores]]:
        policy.weights.zero_grad()  # a retry after running out of memory must not add to half of a gradient
        scored = []
        for pack in packs:
            batch = models.collate(groups, pack)
            scores = score_pack(policy, batch, loss.reads)
            output = loss(batch.groups, scores.responses(batch.groups), None, scores.token_logp)
            answer = scores.token_logp if loss.reads_tokens else scores.logp
            answer.backward((output.d_logp / step.rows).to(answer))
            scored.append((pack, scores.detached()))
        _pass_idle(models, groups, step, oom, dist)
        return scored

    with policy.cast_once():
        scored = oom.run(groups, step.packs_of_rank(dist.rank), forward_and_backward)
    total = gather_step(policy, groups, step, scored, loss.reads, dist)
    output = loss(rows, total.responses, None, total.token_logp)  # for the metrics; the gradient is in place
    return StepGradient(output, total.tokens, total.shared)


def _two_passes(
    models: Models, groups: Groups, step: Step, loss: Loss, oom: OomRetry, dist: Distributed
) -> StepGradient:
    """All packs are scored, the loss is called about the whole step, and each pack goes through the model again."""
    policy, rows = models.policy, [groups[i] for i in step.order]
    collate = partial(models.collate, groups)
    batch_of = cache(collate)  # both passes go through the same batches
    total = score_step(policy, batch_of, groups, step, loss.reads, oom, dist)
    mismatched = None
    if step.mismatched is not None:
        mismatched = score_step(policy, collate, groups, step.mismatched, loss.reads, oom, dist)
    output = loss(rows, total.responses, None if mismatched is None else mismatched.responses)
    places = response_places(groups, step)

    def forward_and_backward(packs: Sequence[Pack]) -> None:
        policy.weights.zero_grad()
        for pack in packs:
            logp = score_pack(policy, batch_of(pack), frozenset()).logp  # nothing else that is read has a gradient
            rows_of_pack = [place for i in pack for place in places[i]]
            _check_repeated(policy, total.responses, logp.detach(), rows_of_pack)
            logp.backward(output.d_logp[rows_of_pack].to(logp) / step.rows)
        _pass_idle(models, groups, step, oom, dist)

    with policy.cast_once():
        oom.run(groups, step.packs_of_rank(dist.rank), forward_and_backward)
    return StepGradient(output, 2 * total.tokens + (0 if mismatched is None else mismatched.tokens), total.shared)


def _pass_idle(models: Models, groups: Groups, step: Step, oom: OomRetry, dist: Distributed) -> None:
    """The passes that this rank makes for the others, with a gradient of 0."""
    for pack in idle_packs(models.policy, groups, step, oom, dist):
        logp = score_pack(models.policy, models.collate(groups, pack), frozenset()).logp
        logp.backward(torch.zeros_like(logp))


def _check_repeated(policy: Policy, first: Responses, logp: Tensor, rows: Sequence[int]) -> None:
    """Raise UserError where a second pass gives other numbers than those that the loss was computed from."""
    off = float(((logp.double().cpu() - first.logp[rows]).abs() / first.tokens[rows]).max())
    if off > policy.noise:  # what is not finite is refused with the update
        raise draws_at_random(off)


def dry_run(
    models: Models, groups: Groups, step: Step, pack: Pack, reads: frozenset[str], oom: OomRetry, dist: Distributed
) -> float:
    """One pack through the models and back on this rank, with a gradient of 0: whether memory suffices for it.

    Returns the largest |log-ratio| of its responses, in nats, which is 0 where the policy is its reference; NaN without
    a reference. The loss is not called: it could ask for responses that this pack does not have.
    """
    groups = models.with_reference(groups, step, oom, dist)

    def forward_and_backward(packs: Sequence[Pack]) -> float:
        log_ratios = [torch.empty(0)]
        for part in packs:
            batch = models.collate(groups, part)
            scores = score_pack(models.policy, batch, reads)
            responses = scores.responses(batch.groups)
            log_ratios += [] if responses.reference is None else [responses.log_ratio.abs()]
            scores.logp.backward(torch.zeros_like(scores.logp))
        every = torch.cat(log_ratios)
        return float(every.max()) if len(every) else float("nan")

    return oom.run(groups, [pack], forward_and_backward)


def value_gradient(models: Models, loss: Loss, groups: Groups, step: Step, oom: OomRetry, dist: Distributed) -> float:
    """Put the gradient of the step's mean value loss into the value model's parameters, on every rank the same; returns
    that loss, a mean over the rows."""
    model, objective = models.value, loss.objective
    assert model is not None
    assert isinstance(objective, PPO)

    def forward_and_backward(packs: Sequence[Pack]) -> float:
        model.weights.zero_grad()
        value = 0.0
        for pack in packs:
            signals.check()
            rows = [groups[i] for i in pack]
            answer = model.read(model.batch(rows))
            leaf = answer.detach().double().cpu().requires_grad_()
            weight = torch.tensor([row.weight / len(row.responses) for row in rows for _ in row.responses])
            values = Values(leaf, column_of(rows, "value"), column_of(rows, "returns"), response_of_tokens(rows),
                            weight.double())  # fmt: skip
            total = (values.weight * objective.value_loss(values)).sum() / step.rows
            (d_value,) = torch.autograd.grad(total, [leaf])
            answer.backward(d_value.to(answer))
            value += float(total.detach())
        return value

    with model.cast_once():
        value = oom.run(groups, step.packs_of_rank(dist.rank), forward_and_backward)
    model.weights.sum_gradients(dist)
    return float(dist.sum(torch.tensor(value, dtype=torch.float64)))

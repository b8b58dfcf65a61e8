"""A step's packs through the policy and back, on all ranks.

The loss never sees the model. It is given the log-probability of each response, and answers with the derivative of its
value by each of them; `logp.backward(d_logp)` is where that enters the model. Everything else that the loss reads of a
response (its tokens, its reference, its score) is a sum over columns of its group, known before the pass.

A loss that needs the full step is as exact as any other: every pack is scored without gradient, the loss is called
once, and then each pack goes through the model again. Ranks exchange a few numbers a response, and then the gradient.
Held by tests/laws/test_packs.py and tests/laws/test_ranks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from preftune import signals
from preftune.distributed import Distributed
from preftune.forward.loss import TOKENS, Loss, LossOutput
from preftune.forward.parts import part_sums
from preftune.forward.responses import responses_of, token_weights
from preftune.model.policy import Policy
from preftune.model.verify import draws_at_random
from preftune.objective.responses import Responses
from preftune.pack.batch import Batch
from preftune.pack.oom import Groups, OomRetry
from preftune.pack.plan import Pack, Step
from preftune.reference.moving import MovingReference
from preftune.tokens.groups import TokenGroup


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


class PackScores(NamedTuple):
    """A pack through the policy. token_logp: (members,) what the head answers, each times its weight, with gradient:
    log-probabilities in nats, or scores; logp: (responses,) its sums; sharpness: (responses,) or None, see `Responses`;
    tokens: through the policy; shared: tokens that sharing prefixes saved; parts: see `part_sums`, where "parts" are
    read."""

    token_logp: Tensor
    logp: Tensor
    sharpness: Tensor | None
    tokens: int
    shared: int
    parts: Tensor | None = None

    def responses(self, groups: Sequence[TokenGroup]) -> Responses:
        """What the loss reads of the pack, which has these groups."""
        sharpness = None if self.sharpness is None else self.sharpness.double().cpu()
        return responses_of(groups, self.logp.detach().double().cpu(), sharpness, self.logp.dtype)

    def detached(self) -> PackScores:
        """The numbers without what the backward pass needs."""
        return self._replace(token_logp=self.token_logp.detach(), logp=self.logp.detach())


def score_pack(policy: Policy, batch: Batch, reads: frozenset[str]) -> PackScores:
    """The forward pass of a pack. reads: what the loss reads. A signal to stop takes effect before it."""
    signals.check()
    weights, sharpness = token_weights(batch.groups, policy.device), None
    if "sharpness" in reads:
        token_logp, log_squares = policy.token_logp_and_squares(batch)
        counts = torch.ones_like(log_squares) if weights is None else weights.to(log_squares.dtype)
        sharpness = batch.sum((token_logp.detach() - log_squares) * counts) / batch.sum(counts)
    else:
        token_logp = policy.token_logp(batch)
    counted = token_logp if weights is None else token_logp * weights.to(token_logp.dtype)
    parts = part_sums(batch.groups, counted) if "parts" in reads else None
    return PackScores(counted, batch.sum(counted), sharpness, batch.tokens, batch.tokens_naive - batch.tokens, parts)


class StepScores(NamedTuple):
    """All responses of a step, on every rank. tokens: through the policy, of all ranks; shared: saved by sharing;
    parts: (responses, 3), see `part_sums`; zeros unless they were read; token_logp: (members,) fp64 on the host, where
    the loss reads each token."""

    responses: Responses
    tokens: int
    shared: int
    parts: Tensor
    token_logp: Tensor | None = None


def gather_step(
    policy: Policy, groups: Groups, step: Step, scored: Sequence[tuple[Pack, PackScores]],
    reads: frozenset[str], dist: Distributed,
) -> StepScores:  # fmt: skip
    """Put together what each rank has scored of a step, in the order of `step.order`.

    Ranks sum one table, with zeros where others have scored, so the sum is exact.
    """
    places = response_places(groups, step)
    count = sum(map(len, places.values()))
    table = torch.zeros(count + 1, 5, dtype=torch.float64)
    for pack, scores in scored:
        rows = [place for i in pack for place in places[i]]
        table[rows, 0] = scores.logp.detach().double().cpu()
        if scores.sharpness is not None:
            table[rows, 1] = scores.sharpness.detach().double().cpu()
        if scores.parts is not None:
            table[rows, 2:] = scores.parts.cpu()
        table[count, :2] += torch.tensor([scores.tokens, scores.shared])
    dist.sum(table)
    logp, sharpness = table[:count, :2].T.contiguous()
    responses = responses_of(
        [groups[i] for i in step.order], logp, sharpness if "sharpness" in reads else None, policy.logp_dtype
    )
    token_logp = _gather_tokens(groups, step, scored, dist) if TOKENS in reads else None
    return StepScores(responses, int(table[count, 0]), int(table[count, 1]), table[:count, 2:], token_logp)


def _gather_tokens(groups: Groups, step: Step, scored: Sequence[tuple[Pack, PackScores]], dist: Distributed) -> Tensor:
    """(members,) the log-probability of every token of a step, in the order of `step.order`."""
    counts = [sum(map(len, groups[i].responses)) for i in step.order]
    token_logp = torch.zeros(sum(counts), dtype=torch.float64)
    of_group = dict(zip(step.order, token_logp.split(counts), strict=True))
    for pack, scores in scored:
        parts = [of_group[i] for i in pack]
        for part, values in zip(parts, scores.token_logp.detach().cpu().split([*map(len, parts)]), strict=True):
            part.copy_(values)
    return dist.sum(token_logp)


def response_places(groups: Groups, step: Step) -> dict[int, range]:
    """Where the responses of each group of a step stand among all of the step."""
    places: dict[int, range] = {}
    start = 0
    for i in step.order:
        places[i] = range(start, start + len(groups[i].responses))
        start = places[i].stop
    return places


def score_step(
    policy: Policy, batch_of: Callable[[Pack], Batch], groups: Groups, step: Step, reads: frozenset[str], oom: OomRetry,
    dist: Distributed,
) -> StepScores:  # fmt: skip
    """Every row of a step through the policy without gradient, each rank its packs."""

    def score(packs: Sequence[Pack]) -> list[tuple[Pack, PackScores]]:
        with torch.no_grad():
            return [(pack, score_pack(policy, batch_of(pack), reads)) for pack in packs]

    scored = oom.run(groups, step.packs_of_rank(dist.rank), score)
    return gather_step(policy, groups, step, scored, reads, dist)


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
    dist.sum_gradients(models.policy.module.parameters())
    return gradient


def _one_pass(models: Models, groups: Groups, step: Step, loss: Loss, oom: OomRetry, dist: Distributed) -> StepGradient:
    """Each pack has its own loss, and goes back at once."""
    policy, rows = models.policy, [groups[i] for i in step.order]

    def forward_and_backward(packs: Sequence[Pack]) -> list[tuple[Pack, PackScores]]:
        policy.module.zero_grad()  # a retry after running out of memory must not add to half of a gradient
        scored = []
        for pack in packs:
            batch = models.collate(groups, pack)
            scores = score_pack(policy, batch, loss.reads)
            output = loss(batch.groups, scores.responses(batch.groups), token_logp=scores.token_logp)
            answer = scores.token_logp if loss.reads_tokens else scores.logp
            answer.backward((output.d_logp / len(rows)).to(answer))
            scored.append((pack, scores.detached()))
        return scored

    scored = oom.run(groups, step.packs_of_rank(dist.rank), forward_and_backward)
    total = gather_step(policy, groups, step, scored, loss.reads, dist)
    output = loss(rows, total.responses, token_logp=total.token_logp)  # for the metrics; the gradient is in place
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
        policy.module.zero_grad()
        for pack in packs:
            logp = score_pack(policy, batch_of(pack), frozenset()).logp  # nothing else that is read has a gradient
            rows_of_pack = [place for i in pack for place in places[i]]
            _check_repeated(policy, total.responses, logp.detach(), rows_of_pack)
            logp.backward(output.d_logp[rows_of_pack].to(logp) / len(rows))

    oom.run(groups, step.packs_of_rank(dist.rank), forward_and_backward)
    return StepGradient(output, 2 * total.tokens + (0 if mismatched is None else mismatched.tokens), total.shared)


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

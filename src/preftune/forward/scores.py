"""Packs and steps through a policy: the numbers of each response and token, gathered from all ranks.

Held by tests/laws/test_packs.py and tests/laws/test_ranks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from preftune import signals
from preftune.distributed import Distributed
from preftune.forward.loss import TOKENS
from preftune.forward.responses import part_sums, responses_of, token_weights
from preftune.model.columns import idle_packs
from preftune.model.policy import Policy
from preftune.objective.responses import Responses
from preftune.pack.batch import Batch
from preftune.pack.oom import Groups, OomRetry
from preftune.pack.plan import Pack, Step
from preftune.tokens.groups import TokenGroup


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
        logp, *sharpness = self.on_host()
        return responses_of(groups, logp, sharpness[0] if sharpness else None, self.logp.dtype)

    def on_host(self) -> Tensor:
        """(1 or 2, responses) fp64: logp, and sharpness where there is one, by one copy that waits for the pass."""
        columns = [column.detach().double() for column in (self.logp, self.sharpness) if column is not None]
        return torch.stack(columns).cpu()

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
    shared = sum(group.tokens_naive for group in batch.groups) - batch.tokens
    return PackScores(counted, batch.sum(counted), sharpness, batch.tokens, shared, parts)


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
        columns = scores.on_host()
        table[rows, : len(columns)] = columns.T
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
            scored = [(pack, score_pack(policy, batch_of(pack), reads)) for pack in packs]
            for pack in idle_packs(policy, groups, step, oom, dist):
                score_pack(policy, batch_of(pack), reads)
        return scored

    scored = oom.run(groups, step.packs_of_rank(dist.rank), score)
    return gather_step(policy, groups, step, scored, reads, dist)

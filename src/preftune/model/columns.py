"""A number for every token of every response, by a model that does not learn from it, shared out among the ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from preftune import signals
from preftune.distributed import Distributed
from preftune.model.policy import Policy
from preftune.pack.oom import Groups, OomRetry
from preftune.pack.plan import Pack, Step, halved
from preftune.tokens.groups import TokenGroup


def idle_packs(policy: Policy, groups: Groups, step: Step, oom: OomRetry, dist: Distributed) -> tuple[Pack, ...]:
    """Packs that count for nothing, with which this rank makes as many passes as the one that has most; none unless
    ranks wait for each other in every pass."""
    if not policy.weights.in_step or not step.packs:
        return ()
    passes = [len(halved(step.packs_of_rank(rank), oom.splits)) for rank in range(dist.world_size)]
    shortest = min(step.order, key=lambda i: groups[i].tokens)
    return ((shortest,),) * (max(passes) - passes[dist.rank])


def read_packs(
    policy: Policy, groups: Groups, packs: Sequence[Pack], oom: OomRetry, idle: Callable[[], Sequence[Pack]] = tuple
) -> tuple[dict[int, np.ndarray], int]:
    """What the head answers for each group by its index, all of its responses one after the other: a number a token, or
    a response where their ends are read; and how many tokens were computed. idle: packs that other ranks wait for."""

    def read(packs: Sequence[Pack]) -> tuple[dict[int, np.ndarray], int]:
        answers: dict[int, np.ndarray] = {}
        computed = 0
        for pack in packs:
            signals.check()
            batch = policy.batch([groups[i] for i in pack])
            with torch.no_grad():
                answer = policy.read(batch).cpu().numpy()
            responses = [groups[i].responses for i in pack]
            counts = [len(r) if policy.head.reads == "ends" else sum(map(len, r)) for r in responses]
            answers |= dict(zip(pack, np.split(answer, np.cumsum(counts)[:-1]), strict=True))
            computed += batch.tokens
        with torch.no_grad():
            for pack in idle():
                policy.read(policy.batch([groups[i] for i in pack]))
        return answers, computed

    return oom.run(groups, packs, read)


def fill_column(
    policy: Policy, name: str, groups: Groups, step: Step, oom: OomRetry, dist: Distributed
) -> dict[int, TokenGroup]:
    """The groups of a step by their index, with what the policy's head answers in the column `name`; on every rank."""
    idle = partial(idle_packs, policy, groups, step, oom, dist)
    answers, _ = read_packs(policy, groups, step.packs_of_rank(dist.rank), oom, idle)
    counts, dtype = [sum(map(len, groups[i].responses)) for i in step.order], policy.logp_dtype
    parts = torch.zeros(sum(counts), dtype=dtype).split(counts)
    for i, part in zip(step.order, parts, strict=True):
        if i in answers:
            part.copy_(torch.from_numpy(answers[i]))
    table = dist.sum(torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)).split(counts)  # 0 where others did
    columns = {i: values.numpy() for i, values in zip(step.order, table, strict=True)}
    stops = {i: np.cumsum([*map(len, groups[i].responses)])[:-1] for i in columns}
    return {i: groups[i].with_column(name, tuple(np.split(values, stops[i]))) for i, values in columns.items()}

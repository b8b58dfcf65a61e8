"""Every step and pack of a run, before the first step: a pure function of lengths, budget, world size and seed.

A step is the rows of one update (the mathematics); a pack is the rows of one forward pass (the memory; the field's
micro-batch), and each pack has the rank that takes it. Neither packs nor ranks change which rows make a step. Resuming
is `plan.steps[state.step:]`. Held by tests/pack/test_plan.py and tests/laws/test_packs.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preftune.pack.trie import lexicographic_order
from preftune.tokens.groups import TokenGroup

Pack = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one update, as packs of indices into the groups.

    epoch: passes over the rows after it, with fraction; pack_rank: the rank that takes each pack, 0 where empty;
    mismatched: packs of responses under other prompts, of indices into the same groups, for KTO's drift; idle: rows of
    the update that are in no pack, because nothing of them has a gradient.
    """

    packs: tuple[Pack, ...]
    epoch: float = 0.0
    pack_rank: tuple[int, ...] = ()
    mismatched: Step | None = None
    idle: Pack = ()

    @property
    def rows(self) -> int:
        return sum(map(len, self.packs)) + len(self.idle)

    @property
    def order(self) -> list[int]:
        """The groups of its packs in the one order that does not depend on them."""
        return sorted(i for pack in self.packs for i in pack)

    def packs_of_rank(self, rank: int) -> tuple[Pack, ...]:
        pack_rank = self.pack_rank or (0,) * len(self.packs)
        return tuple(pack for pack, taker in zip(self.packs, pack_rank, strict=True) if taker == rank)


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps of a run."""

    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Phase:
    """groups, with their columns, and the plan over them; first: updates done before its first step; number: of phases
    before it; policy_learns: False where only a value model does."""

    groups: Sequence[TokenGroup]
    plan: Plan
    first: int = 0
    number: int = 0
    policy_learns: bool = True

    def after(self, step: int) -> tuple[Step, ...]:
        """The steps that are left after `step` updates of the run."""
        return self.plan.steps[step - self.first :]


@dataclass(frozen=True, slots=True)
class Packing:
    """How rows become packs.

    tokens: that a pack may hold (a larger group has a pack of its own); attention_crossover: length, in tokens, of a
    path at which attention takes as long as all other work on its tokens.
    """

    tokens: int
    attention_crossover: float = math.inf

    def cost(self, group: TokenGroup) -> float:
        """Work on a group, in tokens without attention: linear in its tokens, each of which attends to a path."""
        return group.tokens * (1 + group.longest / self.attention_crossover)

    def step(self, groups: Sequence[TokenGroup], world_size: int) -> Step:
        """All of these groups as one step."""
        sizes, costs = [g.tokens for g in groups], [self.cost(g) for g in groups]
        sort_key = prefix_order([g.prompt for g in groups])
        packs = fill(range(len(groups)), sizes, self.tokens, sort_key, costs, world_size)
        return Step(packs, 0.0, assign_ranks(packs, costs, world_size))


def make_plan(
    sizes: Sequence[int],
    *,
    rows: int,
    tokens: int,
    seed: int | Sequence[int],
    steps: int | None = None,
    epochs: int | None = None,
    sort_key: Sequence[int] | None = None,
    costs: Sequence[float] | None = None,
    world_size: int = 1,
    idle: frozenset[int] = frozenset(),
) -> Plan:
    """Plan a run over groups of the given sizes (distinct tokens of each).

    rows: groups of a step; the last step of an epoch takes what is left. tokens: budget of a pack; a larger group
    has a pack of its own. steps or epochs: how long; one epoch where neither is given. sort_key: a number a group;
    within a step, groups with close numbers share prefixes and are packed together. costs: work of each group, its
    size where not given; world_size: processes that divide the packs; idle: groups that need no pass, of which a step
    without any other makes one all the same. The last four move no row to another step.
    """
    count, costs = len(sizes), costs or sizes
    seeds = [seed] if isinstance(seed, int) else [*seed]
    if not count:
        return Plan(())
    total = steps if steps is not None else (epochs or 1) * -(-count // rows)
    planned: list[Step] = []
    epoch = 0
    while len(planned) < total:
        order = np.random.default_rng([*seeds, epoch]).permutation(count)
        for first in range(0, count, rows)[: total - len(planned)]:
            chosen = order[first : first + rows].tolist()
            left = [i for i in chosen if i not in idle] or [min(chosen, key=lambda i: sizes[i])]
            packs = fill(left, sizes, tokens, sort_key, costs, world_size)
            passes = epoch + min(first + rows, count) / count
            without = tuple(i for i in chosen if i not in left)
            planned.append(Step(packs, passes, assign_ranks(packs, costs, world_size), idle=without))
        epoch += 1
    return Plan(tuple(planned))


def fill(
    indices: Sequence[int],
    sizes: Sequence[int],
    tokens: int,
    sort_key: Sequence[int] | None = None,
    costs: Sequence[float] | None = None,
    world_size: int = 1,
) -> tuple[Pack, ...]:
    """Cut groups into packs of at most `tokens` (a larger group alone), as equal in cost as their order allows.

    As few as that takes, and a multiple of `world_size` where there are groups enough.
    """
    order = sorted(indices, key=lambda i: (sort_key[i], i)) if sort_key is not None else list(indices)
    if not order:
        return ()
    size = np.array([sizes[i] for i in order])
    cost = size if costs is None else np.maximum([costs[i] for i in order], size)  # free groups would never fit
    middle = (np.cumsum(cost) - cost / 2) / cost.sum()  # of each group in the whole work, from 0 to 1
    count = -(-int(size.sum()) // tokens // world_size) * world_size
    while True:
        cuts = np.flatnonzero(np.diff((middle * count).astype(int))) + 1
        parts = np.split(np.arange(len(order)), cuts)
        if all(len(part) == 1 or size[part].sum() <= tokens for part in parts):
            break
        count += world_size
    while len(parts) % world_size and any(len(part) > 1 for part in parts):
        costliest = max((n for n, part in enumerate(parts) if len(part) > 1), key=lambda n: cost[parts[n]].sum())
        parts = [*parts[:costliest], *np.array_split(parts[costliest], 2), *parts[costliest + 1 :]]
    return tuple(tuple(order[i] for i in part) for part in parts)


def assign_ranks(packs: Sequence[Pack], costs: Sequence[float], world_size: int) -> tuple[int, ...]:
    """The rank that takes each pack: the costliest first, each by the rank that has the least work so far."""
    work = [sum(costs[i] for i in pack) for pack in packs]
    pack_rank, load = [0] * len(packs), [0.0] * world_size
    for n in sorted(range(len(packs)), key=work.__getitem__, reverse=True):
        pack_rank[n] = load.index(min(load))
        load[pack_rank[n]] += work[n]
    return tuple(pack_rank)


def halved(packs: Sequence[Pack], times: int) -> tuple[Pack, ...]:
    """Every pack cut in two, so many times; a pack of one group stays."""
    for _ in range(times):
        halves = [half for pack in packs for half in (pack[: -(-len(pack) // 2)], pack[-(-len(pack) // 2) :])]
        packs = [half for half in halves if half]
    return tuple(packs)


def prefix_order(sequences: Sequence[np.ndarray]) -> list[int]:
    """The place of each sequence in lexicographic order: the sort_key of groups, given the prompt of each."""
    return np.argsort(lexicographic_order(sequences)).tolist()


def updates_before(plan: Plan, epochs: int, rows: int, limit: int | None) -> list[int]:
    """Updates before each phase of the plan, and behind the last phase those of the run.

    epochs: passes over a phase; rows: prompts of a step; limit: most updates of the run.
    """
    firsts = [0]
    for step in plan.steps:
        firsts.append(firsts[-1] + epochs * -(-step.rows // rows))
    return [first if limit is None else min(first, limit) for first in firsts]

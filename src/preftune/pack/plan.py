"""Every step and pack of a run, before the first step: a pure function of lengths, budget, ranks and seed.

A step is the rows of one update (the mathematics); a pack is the rows of one forward pass (the memory), and each has
the rank that takes it. Neither packs nor ranks change which rows make a step. Resuming is `plan.steps[state.step:]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preftune.tokens.groups import TokenGroup

Pack = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one update, as packs of indices into the groups.

    epoch: passes done after it, with fraction; owners: the rank that takes each pack, 0 where none is given.
    """

    packs: tuple[Pack, ...]
    epoch: float = 0.0
    owners: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return sum(map(len, self.packs))

    @property
    def order(self) -> list[int]:
        """Its groups in the one order that knows nothing of packs."""
        return sorted(i for pack in self.packs for i in pack)

    def of(self, rank: int) -> tuple[Pack, ...]:
        """The packs that a rank takes."""
        owners = self.owners or (0,) * len(self.packs)
        return tuple(pack for pack, owner in zip(self.packs, owners, strict=True) if owner == rank)


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps of a run."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Packing:
    """How rows become packs.

    tokens: that a pack may hold (a larger group has a pack of its own); scale: length, in tokens, of a path at which
    attention takes as long as all other work on its tokens.
    """

    tokens: int
    scale: float = math.inf

    def cost(self, group: TokenGroup) -> float:
        """Work on a group, in tokens without attention: linear in its tokens, each of which attends to a path."""
        path = len(group.prompt) + max(map(len, group.responses))
        return group.tokens * (1 + path / self.scale)

    def step(self, groups: Sequence[TokenGroup], ranks: int) -> Step:
        """All of these groups as one step, for so many ranks."""
        sizes, costs = [g.tokens for g in groups], [self.cost(g) for g in groups]
        near = prefix_rank([g.prompt for g in groups])
        packs = fill(range(len(groups)), sizes, self.tokens, near, costs, ranks)
        return Step(packs, 0.0, share(packs, costs, ranks))


def make_plan(
    sizes: Sequence[int],
    *,
    rows: int,
    tokens: int,
    seed: int,
    steps: int | None = None,
    epochs: int | None = None,
    near: Sequence[int] | None = None,
    costs: Sequence[float] | None = None,
    ranks: int = 1,
) -> Plan:
    """Plan a run over groups of the given sizes (distinct tokens of each).

    rows: groups of a step; the last step of an epoch takes what is left. tokens: budget of a pack; a larger group
    has a pack of its own. steps or epochs: how long; one epoch where neither is given. near: a number a group;
    within a step, groups with close numbers share prefixes and are packed together. costs: work of each group, its
    size where not given; ranks: how many share the packs. None of the last three moves a row to another step.
    """
    count, costs = len(sizes), costs or sizes
    if not count:
        return Plan(())
    per_epoch = -(-count // rows)
    total = steps if steps is not None else (epochs or 1) * per_epoch
    planned: list[Step] = []
    epoch = 0
    while len(planned) < total:
        order = np.random.default_rng([seed, epoch]).permutation(count)
        for first in range(0, count, rows):
            if len(planned) == total:
                break
            chosen = order[first : first + rows].tolist()
            packs = fill(chosen, sizes, tokens, near, costs, ranks)
            planned.append(Step(packs, epoch + min(first + rows, count) / count, share(packs, costs, ranks)))
        epoch += 1
    return Plan(tuple(planned))


def fill(
    indices: Sequence[int],
    sizes: Sequence[int],
    tokens: int,
    near: Sequence[int] | None = None,
    costs: Sequence[float] | None = None,
    ranks: int = 1,
) -> tuple[Pack, ...]:
    """Cut groups into packs of at most `tokens` (a larger group alone), as equal in cost as their order allows.

    As few as that takes, and a multiple of `ranks` where there are groups enough.
    """
    order = sorted(indices, key=lambda i: (near[i], i)) if near is not None else list(indices)
    if not order:
        return ()
    size = np.array([sizes[i] for i in order])
    cost = size if costs is None else np.maximum([costs[i] for i in order], size)  # free groups would never fit
    place = (np.cumsum(cost) - cost / 2) / cost.sum()  # of each group's middle in the whole work, from 0 to 1
    count = -(-int(size.sum()) // tokens // ranks) * ranks
    while True:
        cuts = np.flatnonzero(np.diff((place * count).astype(int))) + 1
        parts = np.split(np.arange(len(order)), cuts)
        if all(len(part) == 1 or size[part].sum() <= tokens for part in parts):
            break
        count += ranks
    while len(parts) % ranks and (wide := [at for at, part in enumerate(parts) if len(part) > 1]):
        at = max(wide, key=lambda at: cost[parts[at]].sum())
        parts[at : at + 1] = np.array_split(parts[at], 2)
    return tuple(tuple(order[i] for i in part) for part in parts)


def share(packs: Sequence[Pack], costs: Sequence[float], ranks: int) -> tuple[int, ...]:
    """The rank that takes each pack: the costliest first, each by the rank that has the least work so far."""
    work = [sum(costs[i] for i in pack) for pack in packs]
    owners, held = [0] * len(packs), [0.0] * ranks
    for at in sorted(range(len(packs)), key=work.__getitem__, reverse=True):
        owners[at] = held.index(min(held))
        held[owners[at]] += work[at]
    return tuple(owners)


def halved(packs: Sequence[Pack], times: int) -> tuple[Pack, ...]:
    """Every pack cut in two, so many times; a pack of one group stays."""
    for _ in range(times):
        packs = [part for pack in packs for part in (pack[: -(-len(pack) // 2)], pack[-(-len(pack) // 2) :]) if part]
    return tuple(packs)


def prefix_rank(sequences: Sequence[np.ndarray]) -> list[int]:
    """Place of each sequence in lexicographic order: what `near` wants, given each group's prompt."""
    keys = [np.asarray(s, dtype=">u4").tobytes() for s in sequences]
    rank = [0] * len(keys)
    for place, index in enumerate(sorted(range(len(keys)), key=keys.__getitem__)):
        rank[index] = place
    return rank

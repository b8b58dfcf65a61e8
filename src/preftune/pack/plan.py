"""Every step and pack of a run, before the first step: a pure function of lengths, budget and seed.

A step is the rows of one update (the mathematics); a pack is the rows of one forward pass (the memory). Neither
changes the other. Resuming is `plan.steps[state.step:]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Pack = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one update, as packs of indices into the groups. epoch: passes done after it, with fraction."""

    packs: tuple[Pack, ...]
    epoch: float

    @property
    def rows(self) -> int:
        return sum(map(len, self.packs))


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps of a run."""

    steps: tuple[Step, ...]


def make_plan(
    sizes: Sequence[int],
    *,
    rows: int,
    tokens: int,
    seed: int,
    steps: int | None = None,
    epochs: int | None = None,
    near: Sequence[int] | None = None,
) -> Plan:
    """Plan a run over groups of the given sizes (distinct tokens of each).

    rows: groups of a step; the last step of an epoch takes what is left. tokens: budget of a pack; a larger group
    has a pack of its own. steps or epochs: how long; one epoch where neither is given. near: a number a group;
    within a step, groups with close numbers share prefixes and are packed together (it never moves a row to
    another step).
    """
    count = len(sizes)
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
            packs = fill(chosen, sizes, tokens, near)
            planned.append(Step(packs, epoch + min(first + rows, count) / count))
        epoch += 1
    return Plan(tuple(planned))


def fill(
    indices: Sequence[int], sizes: Sequence[int], tokens: int, near: Sequence[int] | None = None
) -> tuple[Pack, ...]:
    """Split groups into packs of at most `tokens` (a larger group alone), as even as their order allows."""
    order = sorted(indices, key=lambda i: (near[i], i)) if near is not None else list(indices)
    total = sum(sizes[i] for i in order)
    target = total / max(1, -(-total // tokens))  # even packs, rather than full ones and a rest
    packs: list[list[int]] = []
    held = 0
    for i in order:
        if packs and held + sizes[i] <= tokens and held + sizes[i] / 2 <= target:
            packs[-1].append(i)
            held += sizes[i]
        else:
            packs.append([i])
            held = sizes[i]
    return tuple(tuple(pack) for pack in packs)


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

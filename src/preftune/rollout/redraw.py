"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): a prompt whose responses all have one score has no gradient,
so another takes its place. Held by tests/laws/test_online.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from preftune.rollout.config import Rollout
from preftune.rollout.numbers import Numbers


def redrawn(
    numbers: Numbers,
    order: Sequence[int],
    others: np.ndarray,
    rollout: Rollout,
    draw: Callable[[Sequence[int]], Numbers],
) -> Numbers:  # fmt: skip
    """Scored draws in which other tasks have taken the places of those from which nothing is learned, as far as there
    are any after `rollout.redraws` turns. Others come in an order of their own, so the plan of the run stays as it is.

    order: the tasks of the numbers, by index; others: (tasks,) those that may take a place, in turn; draw: gives scored
    draws to tasks by their index.
    """
    tasks = np.array(order)
    for _ in range(rollout.redraws):
        places = np.flatnonzero(numbers.of_one_score(rollout.responses))
        tried, others = np.split(others, [min(len(places), len(others))])
        if not len(tried):
            break
        drawn = draw(tried.tolist())
        chosen = np.flatnonzero(~drawn.of_one_score(rollout.responses))
        places = places[: len(chosen)]
        numbers = numbers.with_tasks(places.tolist(), drawn, chosen.tolist(), rollout.responses)
        tasks[places] = tried[chosen]
    return replace(numbers, tasks=tasks)

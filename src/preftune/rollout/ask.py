"""Draws to tasks, and what rewards and judges say of them; each rank asks for its share.

Held by tests/laws/test_online.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from preftune import signals
from preftune.distributed import Distributed
from preftune.errors import IO, UserError, is_out_of_memory
from preftune.rollout.draw import Drawn, Sampler
from preftune.rollout.judges import PairwiseJudge, judged, preferred
from preftune.rollout.numbers import Numbers, exchanged
from preftune.rollout.scorers import Answered, SummedScorer, answered_task
from preftune.rollout.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class NotScoredError(UserError):
    """A reward or a judge gave no scores, which all ranks are told: what was updated before is whole."""


@contextmanager
def _asking(dist: Distributed) -> Iterator[None]:
    """In this block, which may last, a signal ends the work at once, and no rank waits for one that failed."""
    try:
        with signals.interruptible_together(dist):
            yield
    except signals.Stopped:
        raise
    except UserError as error:
        raise NotScoredError(error.problems, code=error.code) from error


def draw(
    sampler: Sampler,
    tasks: Sequence[Task],
    count: int,
    seed: Sequence[int],
    dist: Distributed,
    ranks: int | None = None,
) -> Numbers:
    """Responses to all tasks. ranks: how many of the first ranks draw, each its share; all of them if not given."""
    ranks = ranks or dist.world_size
    with signals.interruptible_together(dist):
        drawn = _drawn(sampler, tasks[dist.rank :: ranks] if dist.rank < ranks else (), count, seed)
    return exchanged(drawn, len(tasks), count, dist, ranks)


def _drawn(sampler: Sampler, tasks: Sequence[Task], count: int, seed: Sequence[int]) -> list[Drawn]:
    """Responses to these tasks; where memory runs out, to one half after the other. Raises UserError at one task."""
    if not tasks:  # there are fewer than ranks
        return []
    try:
        return sampler.draw([task.ids for task in tasks], count, seed)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(tasks) == 1:
            raise UserError(f"{count} responses to one prompt do not fit into memory.", location=str(tasks[0].place),
                            hint="Lower rollout.responses or rollout.max_tokens.", code=IO) from error  # fmt: skip
    torch.cuda.empty_cache()
    half = len(tasks) // 2
    return [*_drawn(sampler, tasks[:half], count, seed), *_drawn(sampler, tasks[half:], count, seed)]


def score(
    scorer: SummedScorer, tasks: Sequence[Task], numbers: Numbers, tokenizer: PreTrainedTokenizerBase, dist: Distributed
) -> Numbers:
    """The numbers with the scores, each rank asking for its share of the tasks."""
    count = len(numbers.lengths) // len(tasks)
    own_tasks, answered = _answered(dist, tasks, numbers, tokenizer)
    table = torch.zeros(len(tasks), count, 1 + len(scorer.parts), dtype=torch.float64)
    with _asking(dist):
        if answered and scorer.parts:
            table[own_tasks] = torch.from_numpy(scorer.score(answered)).view(len(answered), count, -1)
    total, *each = dist.sum(table).flatten(0, 1).T.numpy()
    by_reward = np.column_stack(each) if each else np.empty((len(total), 0))
    return replace(numbers, score=total.copy(), scores=by_reward)


def with_votes(
    judge: PairwiseJudge, tasks: Sequence[Task], numbers: Numbers, tokenizer: PreTrainedTokenizerBase, dist: Distributed
) -> Numbers:
    """The numbers with what a judge says of each two responses to a prompt; a response's score is its mean vote."""
    count = len(numbers.lengths) // len(tasks)
    own_tasks, answered = _answered(dist, tasks, numbers, tokenizer)
    table = torch.zeros(len(tasks), count, count, dtype=torch.float64)
    with _asking(dist):
        for i, said in zip(own_tasks, judged(judge, answered) if answered else (), strict=True):
            table[i] = torch.from_numpy(preferred(said))
    votes = dist.sum(table).flatten(0, 1).numpy()
    return replace(numbers, preferred=votes, score=(votes.sum(1) - 0.5) / max(1, count - 1))


def _answered(
    dist: Distributed, tasks: Sequence[Task], numbers: Numbers, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[Answered]]:
    """The tasks that this rank asks about, by index, and as what scorers and judges see."""
    own_tasks = list(range(dist.rank, len(tasks), dist.world_size))
    count = len(numbers.lengths) // len(tasks)
    responses, ended = numbers.by_task(numbers.ids, count), numbers.ended.reshape(-1, count).tolist()
    return own_tasks, [answered_task(tasks[i], responses[i], ended[i], tokenizer) for i in own_tasks]

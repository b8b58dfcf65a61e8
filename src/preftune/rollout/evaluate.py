"""Held-out prompts: what the policy draws to them, with the same random numbers at every evaluation.

Held by tests/laws/test_online.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from preftune.distributed import Distributed
from preftune.events import Note, emit
from preftune.forward.forward import Models
from preftune.frontier.measure import Frontier
from preftune.model.policy import Policy
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Packing
from preftune.rollout.ask import draw, score
from preftune.rollout.derive import error_over_prompts, plain_groups, read_by
from preftune.rollout.draw import Sampler
from preftune.rollout.embedded import Embedded
from preftune.rollout.numbers import Numbers, read_numbers, write_numbers
from preftune.rollout.scorers import SummedScorer
from preftune.rollout.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

START = "start_draws.safetensors"  # what the reference drew to the held-out prompts, from which the ceiling follows
SEED = 1 << 40  # beyond every phase's number
DRAWN = 2048  # responses of the reference, once a run, from which the ceiling follows, where nobody says
FEWEST = 5  # a prompt, of them, that the ceiling has to rest on: the effective number after tilting


@dataclass(frozen=True)
class HeldOutTasks:
    """Prompts that no update learns from. count: responses to each; anchor: the reference that stays; ceiling: its
    responses to all of them, 0 for none; context: what decides its draws and their scores besides the prompts; ranks:
    how many of the first ranks draw, all of them if not given."""

    tasks: Sequence[Task]
    count: int
    seed: int
    sampler: Sampler
    anchor: Policy | None
    scorer: SummedScorer
    tokenizer: PreTrainedTokenizerBase
    packing: Packing
    record: Path
    ceiling: int = DRAWN
    context: str = ""
    ranks: int | None = None
    oom: OomRetry = field(default_factory=OomRetry)

    def evaluate(self, models: Models, dist: Distributed) -> dict[str, float | None]:
        """Draw, score, and compare with the best that a policy at this KL could do."""
        emit(Note("drawing to held-out prompts"))
        drawn = draw(self.sampler, self.tasks, self.count, (self.seed, SEED), dist, self.ranks)
        numbers = self._scored(drawn, dist)
        assert numbers.score is not None
        by_task = numbers.score.reshape(-1, self.count)
        metrics: dict[str, float | None] = {
            "score": float(by_task.mean()),
            "score_error": error_over_prompts(by_task, self.tasks),
            "score_best": float(by_task.max(1).mean()) if self.count > 1 else None,
            "tokens": float(numbers.lengths.mean()),
            "ended": float(numbers.ended.mean()),
        } | by_reward(numbers, self.tasks, [part.name for part in self.scorer.parts])
        metrics |= by_category(by_task, self.tasks)
        reference = self.anchor if models.reference is None else models.reference.policy
        if reference is not None:
            groups = plain_groups(self.tasks, numbers, self.count)
            anchor = read_by(reference, groups, self.packing, self.oom, dist)
            kl = numbers.log_ratio(anchor).reshape(-1, self.count)
            metrics |= {"kl": float(kl.mean()), "kl_error": error_over_prompts(kl, self.tasks)}
            if models.reference is None and self.ceiling:  # from one that moves, draws would have to be made anew
                best = Frontier.sampled(self._reference_scores(reference, dist)).at_kl(float(kl.mean()))
                if best.effective >= FEWEST * len(self.tasks):
                    metrics["ceiling"] = best.reward
        return metrics

    def _scored(self, numbers: Numbers, dist: Distributed) -> Numbers:
        return score(self.scorer, self.tasks, numbers, self.tokenizer, dist)

    def _reference_scores(self, reference: Policy, dist: Distributed) -> np.ndarray:
        """(tasks, responses) scores of what the reference draws, from the record where they are there."""
        path, count = self.record / START, max(self.count, self.ceiling // len(self.tasks))
        known, digest = read_numbers(path, dist), hashlib.sha256(self.context.encode())
        for task in self.tasks:
            digest.update(len(task.ids).to_bytes(8) + task.ids.tobytes())
        drawn_for = np.frombuffer(digest.digest(), np.uint8)
        if known is None or not np.array_equal(known.weights, drawn_for):
            assert isinstance(self.sampler, Embedded)  # a server has the policy, and no ceiling is told then
            sampler = replace(self.sampler, policy=reference)
            known = self._scored(draw(sampler, self.tasks, count, (self.seed, SEED), dist), dist)
            known = replace(known, weights=drawn_for)
            if dist.first:
                write_numbers(path, known)
        assert known.score is not None
        return known.score.reshape(len(self.tasks), -1)


def by_category(by_task: np.ndarray, tasks: Sequence[Task]) -> dict[str, float | None]:
    """What record.of_rewards.OF_CATEGORY names, of each category that tasks name. by_task: (tasks, responses)."""
    metrics: dict[str, float | None] = {}
    for category in sorted({task.category for task in tasks} - {""}):
        places = [i for i, task in enumerate(tasks) if task.category == category]
        metrics[f"score_in {category}"] = float(by_task[places].mean())
        metrics[f"score_error_in {category}"] = error_over_prompts(by_task[places], [tasks[i] for i in places])
    return metrics


def by_reward(numbers: Numbers, tasks: Sequence[Task], rewards: Sequence[str]) -> dict[str, float | None]:
    """What record.of_rewards.OF_REWARD names, of each reward by its name. A prompt of which it has said nothing counts
    nothing."""
    metrics: dict[str, float | None] = {}
    assert numbers.scores is not None
    for name, column in zip(rewards, numbers.scores.T, strict=True):
        by_task = column.reshape(len(tasks), -1)
        scored = np.flatnonzero(~np.isnan(by_task).all(1)).tolist()
        if scored:
            means = np.nanmean(by_task := by_task[scored], 1)
            metrics[f"reward {name}"] = float(means.mean())
            metrics[f"reward_error {name}"] = error_over_prompts(means[:, None], [tasks[i] for i in scored])
            if by_task.shape[1] > 1:
                metrics[f"reward_best {name}"] = float(np.nanmax(by_task, 1).mean())
    return metrics


def chosen_tasks(tasks: Sequence[Task], most: int) -> list[Task]:
    """So many of the tasks at most, in their order, the same ones whatever their order: files are often sorted, and the
    first tasks of one are of one topic."""
    by_digest = sorted(range(len(tasks)), key=lambda i: hashlib.sha256(tasks[i].ids.tobytes()).digest())
    return [tasks[i] for i in sorted(by_digest[:most])]

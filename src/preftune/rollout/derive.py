"""What follows from the numbers of a phase: groups with their labels, advantages, metrics.

Held by tests/laws/test_online.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace as replaced
from typing import Literal

import numpy as np
import torch
from msgspec.structs import replace

from preftune.distributed import Distributed
from preftune.model.columns import fill_column
from preftune.model.policy import Policy
from preftune.objective import parts
from preftune.objective.advantage import corrected, return_to_go, token_rewards
from preftune.objective.base import ObjectiveTable
from preftune.objective.labels import labels_of_scores, labels_of_votes, ranks_of
from preftune.objective.responses import Advantages, Draws
from preftune.objective.rollouts import RolloutFormula
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Packing
from preftune.record.schema import PHASE
from preftune.record.statistics import estimate
from preftune.rollout.numbers import Numbers
from preftune.rollout.tasks import Task
from preftune.tokens.groups import TokenGroup


def plain_groups(tasks: Sequence[Task], numbers: Numbers, count: int) -> list[TokenGroup]:
    """The drawn responses as rankings by their scores, with the column `sampled`."""
    ids, sampled = numbers.by_task(numbers.ids, count), numbers.by_task(numbers.sampled, count)
    groups = []
    for i, task in enumerate(tasks):
        scores = None if numbers.score is None else tuple(numbers.score[i * count : (i + 1) * count].tolist())
        ranks = (1,) * count if scores is None else ranks_of(scores)
        groups.append(
            TokenGroup(prompt=task.ids, responses=ids[i], kind="ranking", place=task.place, id=task.id,
                       weight=task.weight, ranks=ranks, scores=scores, columns={"sampled": sampled[i]})
        )  # fmt: skip
    return groups


def labeled(
    group: TokenGroup, objective: ObjectiveTable, how: Literal["soft", "drawn", "ranks", "judge"], seed: Sequence[int],
    votes: np.ndarray | None,
) -> TokenGroup:  # fmt: skip
    """A group with scores, with ranks and votes too. seed: names its draws; votes: (responses, responses), of a judge.

    Objectives of ratings are told that responses above their group's mean score are good; where all scores are equal
    none is better, and the group has the weight 0.
    """
    scores = group.scores
    assert scores is not None
    if any(part.kind == "ratings" for _, part in parts(objective)):
        mean = sum(scores) / len(scores)
        ranks = tuple(1 if score > mean else 2 for score in scores)
        return replace(group, ranks=ranks, weight=group.weight if len(set(scores)) > 1 else 0.0)
    if votes is not None:
        labels = labels_of_votes(len(scores), lambda i, j: float(votes[i, j]))
    elif how != "judge" and any("votes" in part.reads for _, part in parts(objective)):
        labels = labels_of_scores(scores, how, seed)
    else:
        return group  # whose ranks are those of its scores
    return replace(group, ranks=labels.ranks, preferred=labels.preferred)


def read_by(
    model: Policy, groups: Sequence[TokenGroup], packing: Packing, oom: OomRetry, dist: Distributed
) -> np.ndarray:
    """(members,) what the head of a model answers for each token of the groups, each rank computing its share."""
    filled = fill_column(model, "answer", groups, packing.step(groups, dist.world_size), oom, dist)
    return np.concatenate([values for i in range(len(groups)) for values in filled[i].columns["answer"]])


def draws_of(numbers: Numbers, count: int) -> Draws:
    """The phase as formulas see it."""

    def member(values: np.ndarray | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(values).double()

    assert numbers.score is not None
    lengths = torch.from_numpy(numbers.lengths)
    return Draws(
        sampled=torch.from_numpy(numbers.sampled if numbers.policy is None else numbers.policy).double(),
        reference=member(numbers.reference),
        value=member(numbers.value),
        response=torch.arange(len(lengths)).repeat_interleave(lengths),
        group=torch.arange(len(lengths)) // count,
        score=torch.from_numpy(numbers.score),
        ended=torch.from_numpy(numbers.ended),
    )


def advantages_of(objective: RolloutFormula, numbers: Numbers, count: int, *, at_start: bool) -> Advantages:
    """The advantages of a phase, corrected for a sampler that is not quite the policy.

    at_start: the policy is its reference, so its KL is 0. What two kinds of pass differ in is rounding, and where all
    scores are equal nothing else would be left, of which AdamW makes whole steps.
    """
    draws = draws_of(numbers, count)
    draws = replaced(draws, reference=draws.sampled) if at_start and draws.reference is not None else draws
    advantages = objective.advantages(draws)
    if numbers.policy is None:
        return advantages
    return corrected(advantages, draws.sampled, torch.from_numpy(numbers.sampled).double())


def value_explained(objective: RolloutFormula, numbers: Numbers, count: int) -> float | None:
    """Share of the variance of what was still to come at each token that the values explain."""
    draws = draws_of(numbers, count)
    assert draws.value is not None
    to_come = return_to_go(token_rewards(draws, objective.beta), draws.response)
    variance = float((to_come - to_come.mean()).square().mean())
    return 1 - float((to_come - draws.value).square().mean()) / variance if variance else None


def error_over_prompts(by_task: np.ndarray, tasks: Sequence[Task]) -> float | None:
    """Standard error of the mean of (tasks, responses), over prompts, since tasks of one prompt have the same draws;
    None for one prompt."""
    mean = estimate(by_task.mean(1).tolist(), [task.ids.tobytes() for task in tasks])
    return mean.error if mean is not None and math.isfinite(mean.error) else None


def phase_metrics(numbers: Numbers, tasks: Sequence[Task], rewards: Sequence[str]) -> dict[str, float | None]:
    """What record.schema.PHASE names, and the mean of each reward."""
    count = len(numbers.lengths) // len(tasks)
    metrics: dict[str, float | None] = dict.fromkeys(PHASE)
    assert numbers.score is not None
    assert numbers.scores is not None
    by_task = numbers.score.reshape(-1, count)
    metrics |= {
        "score": float(numbers.score.mean()),
        "score_spread": float(by_task.std(1).mean()),
        "alike": float(numbers.of_one_score(count).mean()) if count > 1 else None,
        "tokens": float(numbers.lengths.mean()),
        "ended": float(numbers.ended.mean()),
        "responses": len(numbers.score),
        "distinct": _distinct(numbers, count),
        "entropy": float(-numbers.sampled.mean(dtype=np.float64)),
    }
    if numbers.reference is not None:
        log_ratios = numbers.log_ratio(numbers.reference)
        metrics["kl"] = float(log_ratios.mean())
        metrics["kl_error"] = error_over_prompts(log_ratios.reshape(-1, count), tasks)
    if numbers.policy is not None:
        metrics["sampler_off"] = float(np.abs(numbers.policy - numbers.sampled).mean())
    for name, column in zip(rewards, numbers.scores.T, strict=True):
        if not np.isnan(column).all():
            metrics[f"reward {name}"] = float(np.nanmean(column))
    return metrics


def _distinct(numbers: Numbers, count: int) -> float:
    """Share of the responses to a prompt that are not the same tokens as another before it."""
    distinct = [len({ids.tobytes() for ids in responses}) for responses in numbers.by_task(numbers.ids, count)]
    return sum(distinct) / len(numbers.lengths)

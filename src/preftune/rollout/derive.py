"""What follows from the numbers of a phase: groups, advantages, metrics.

Held by tests/laws/test_online.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from preftune.objective.advantage import corrected, return_to_go, token_rewards
from preftune.objective.responses import Advantages, Draws
from preftune.objective.rollouts import RolloutFormula
from preftune.record.schema import PHASE
from preftune.rollout.numbers import Numbers
from preftune.rollout.tasks import Task
from preftune.tokens.groups import TokenGroup

if TYPE_CHECKING:
    pass


def plain_groups(tasks: Sequence[Task], numbers: Numbers, count: int) -> list[TokenGroup]:
    """The drawn responses as rankings by their scores, with the column `sampled`."""
    ids, sampled = numbers.by_response(numbers.ids), numbers.by_response(numbers.sampled)
    groups = []
    for i, task in enumerate(tasks):
        part = slice(i * count, (i + 1) * count)
        scores = None if numbers.score is None else tuple(numbers.score[part].tolist())
        ranks = (1,) * count if scores is None else tuple(1 + sum(other > own for other in scores) for own in scores)
        groups.append(
            TokenGroup(prompt=task.ids, responses=tuple(ids[part]), kind="ranking", place=task.place, id=task.id,
                       weight=task.weight, ranks=ranks, scores=scores, columns={"sampled": tuple(sampled[part])})
        )  # fmt: skip
    return groups


def draws_of(numbers: Numbers, count: int) -> Draws:
    """The phase as formulas see it."""

    def member(values: np.ndarray | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(values).double()

    lengths = torch.from_numpy(numbers.lengths)
    return Draws(
        sampled=torch.from_numpy(numbers.sampled if numbers.policy is None else numbers.policy).double(),
        reference=member(numbers.reference),
        value=member(numbers.value),
        response=torch.arange(len(lengths)).repeat_interleave(lengths),
        group=torch.arange(len(lengths)) // count,
        score=torch.from_numpy(numbers.score) if numbers.score is not None else torch.zeros(len(lengths)),
        ended=torch.from_numpy(numbers.ended),
    )


def advantages_of(objective: RolloutFormula, numbers: Numbers, count: int) -> Advantages:
    """The advantages of a phase, corrected for a sampler that is not quite the policy."""
    draws = draws_of(numbers, count)
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


def phase_metrics(numbers: Numbers, count: int, rewards: Sequence[str]) -> dict[str, float | None]:
    """What record.schema.PHASE names, and the mean of each reward."""
    metrics: dict[str, float | None] = dict.fromkeys(PHASE)
    assert numbers.score is not None
    assert numbers.scores is not None
    by_task = numbers.score.reshape(-1, count)
    metrics |= {
        "score": float(numbers.score.mean()),
        "score_spread": float(by_task.std(1).mean()),
        "alike": float((np.ptp(by_task, axis=1) == 0).mean()) if count > 1 else None,
        "tokens": float(numbers.lengths.mean()),
        "ended": float(numbers.ended.mean()),
        "responses": len(numbers.score),
        "distinct": _distinct(numbers, count),
        "entropy": float(-numbers.sampled.mean(dtype=np.float64)),
    }
    if numbers.reference is not None:
        log_ratios = np.add.reduceat(numbers.sampled - numbers.reference.astype(np.float64), starts_of(numbers))
        metrics["kl"] = float(log_ratios.mean())
        metrics["kl_error"] = float(log_ratios.reshape(-1, count).mean(1).std() / max(1, len(by_task) - 1) ** 0.5)
    if numbers.policy is not None:
        metrics["sampler_off"] = float(np.abs(numbers.policy - numbers.sampled).mean())
    for name, column in zip(rewards, numbers.scores.T, strict=True):
        if not np.isnan(column).all():
            metrics[f"reward {name}"] = float(np.nanmean(column))
    return metrics


def starts_of(numbers: Numbers) -> np.ndarray:
    """(responses,) the place of each response's first token."""
    return np.cumsum(numbers.lengths) - numbers.lengths


def _distinct(numbers: Numbers, count: int) -> float:
    """Share of the responses to a prompt that are not the same tokens as another before it."""
    texts = [ids.tobytes() for ids in numbers.by_response(numbers.ids)]
    groups = [texts[i : i + count] for i in range(0, len(texts), count)]
    return sum(len(set(group)) for group in groups) / len(texts)

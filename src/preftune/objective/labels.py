"""How scores of drawn responses become what objectives of pairs and rankings read: ranks, and votes of each pair.

Labels decide what online DPO optimizes. Votes of sigma(s_i - s_j) are the model that DPO inverts, and its optimum is
the reference times exp(score / beta). Ranks alone say that every difference is certain: then the optimum is at
infinity, and training only stops before it (docs/trade-off.md). Held by tests/objective/test_labels.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from math import exp
from typing import Literal, NamedTuple

from preftune.objective.rankings import ranking_pairs

ScoreLabels = Literal["soft", "drawn", "ranks"]


class Labels(NamedTuple):
    """ranks: of each response, 1 the best; preferred: one probability for all pairs, or one for each of
    `ranking_pairs(ranks)`, in that order."""

    ranks: tuple[int, ...]
    preferred: float | tuple[float, ...] = 1.0


def ranks_of(scores: Sequence[float]) -> tuple[int, ...]:
    """1 for the largest score; equal ones have equal ranks."""
    return tuple(1 + sum(other > score for other in scores) for score in scores)


def labels_of_scores(scores: Sequence[float], how: ScoreLabels, seed: Sequence[int] = ()) -> Labels:
    """What the scores of the responses to a prompt say about its pairs.

    soft: each pair with the probability sigma(s_i - s_j); drawn: each with one label, drawn with that probability;
    ranks: the larger score is better for certain, and equal scores make no pair.
    seed: names the prompt's draws, such as (seed, phase, task); nothing else decides them.
    """
    if how == "ranks":
        return Labels(ranks_of(scores))

    def soft(i: int, j: int) -> float:
        return _sigmoid(scores[i] - scores[j])

    def drawn(i: int, j: int) -> float:
        first, second = min(i, j), max(i, j)
        first_is_better = _uniform((*seed, first, second)) < soft(first, second)
        return float(first_is_better == (i == first))

    return labels_of_votes(len(scores), soft if how == "soft" else drawn)


def labels_of_votes(count: int, vote: Callable[[int, int], float]) -> Labels:
    """Labels of `count` responses to a prompt, from the probability vote(i, j) that i is better than j.

    Ranks follow the sum of a response's votes, equal ones the order of the responses, so that no two are equal and
    every pair has its vote. vote(i, j) + vote(j, i) has to be 1.
    """
    votes = [[vote(i, j) if i != j else 0.0 for j in range(count)] for i in range(count)]
    order = sorted(range(count), key=lambda i: -sum(votes[i]))
    ranks = [0] * count
    for rank, i in enumerate(order, 1):
        ranks[i] = rank
    above, below, _ = ranking_pairs(ranks)
    return Labels(tuple(ranks), tuple(votes[i][j] for i, j in zip(above, below, strict=True)))


def _sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x)) if x >= 0 else exp(x) / (1 + exp(x))


def _uniform(counter: Sequence[int]) -> float:
    """A number from 0 to 1 that is a hash of the counter, so that no other draw shifts it."""
    digest = hashlib.sha256(",".join(map(str, counter)).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64

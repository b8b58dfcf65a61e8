"""Scores become ranks and votes; equal scores are even, and a draw depends on its counter alone."""

from __future__ import annotations

import numpy as np
import pytest

from preftune.objective.labels import labels_of_scores, labels_of_votes
from preftune.objective.rankings import ranking_pairs

SCORES = (0.5, 2.0, 0.5, -1.0)


def by_pair(ranks: tuple[int, ...], preferred: float | tuple[float, ...]) -> dict[tuple[int, int], float]:
    assert isinstance(preferred, tuple)
    above, below, _ = ranking_pairs(ranks)
    return dict(zip(zip(above, below, strict=True), preferred, strict=True))


def test_soft_votes_are_those_of_the_scores() -> None:
    ranks, preferred = labels_of_scores(SCORES, "soft")
    assert ranks == (2, 1, 3, 4)
    votes = by_pair(ranks, preferred)
    assert len(votes) == 6
    for (i, j), vote in votes.items():
        assert vote == pytest.approx(1 / (1 + np.exp(SCORES[j] - SCORES[i])), abs=1e-15)
    assert votes[0, 2] == 0.5
    assert labels_of_scores((1e4, -1e4), "soft").preferred == (1.0,)


def test_ranks_say_that_all_is_certain_and_ties_are_no_pair() -> None:
    assert labels_of_scores(SCORES, "ranks") == ((2, 1, 2, 4), 1.0)


def test_drawn_labels_are_right_on_average_and_follow_their_counter() -> None:
    drawn = [labels_of_scores(SCORES, "drawn", (7, task)) for task in range(4000)]
    wins = np.zeros((4, 4))
    for ranks, preferred in drawn:
        for (i, j), vote in by_pair(ranks, preferred).items():
            assert vote in (0.0, 1.0)
            wins[i, j] += vote
            wins[j, i] += 1 - vote
    expected = 1 / (1 + np.exp(np.array(SCORES)[None] - np.array(SCORES)[:, None]))
    off_diagonal = ~np.eye(4, dtype=bool)
    assert np.abs(wins / 4000 - expected)[off_diagonal].max() < 4 * 0.5 / np.sqrt(4000)
    assert drawn[5] == labels_of_scores(SCORES, "drawn", (7, 5))
    assert len({labels.ranks for labels in drawn}) > 5


def test_votes_of_a_judge_give_distinct_ranks() -> None:
    beats = np.array([[0, 0.4, 0.9], [0.6, 0, 0.5], [0.1, 0.5, 0]])
    ranks, preferred = labels_of_votes(3, lambda i, j: float(beats[i, j]))
    assert ranks == (1, 2, 3)
    assert by_pair(ranks, preferred) == {(0, 1): 0.4, (0, 2): 0.9, (1, 2): 0.5}

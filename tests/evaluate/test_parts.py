"""Sums over parts of responses and the words that decide margins, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from making import group

from preftune.evaluate.words import deciding_words
from preftune.forward.responses import outside_fork, part_sums
from preftune.pack.trie import common_prefix


def test_parts_of_a_pair() -> None:
    """[5, 6, 7, 2] against [5, 6, 8, 9, 2]: two shared tokens, then the fork, and an end."""
    rows = [group([1], [5, 6, 7, 2], [5, 6, 8, 9, 2])]
    logp = torch.tensor([-1.0, -2, -3, -4, -1, -2, -5, -6, -7])
    assert part_sums(rows, logp).tolist() == [[-4, -3, -3], [-7, -3, -5]]


def test_parts_of_rows_that_do_not_fork() -> None:
    one_begins_the_other = group([1], [5, 6], [5, 6, 8])
    rating = group([1], [5, 6], kind="rating", good=True)
    ranked = group([1], [5], [5, 6], [7], kind="ranking", ranks=(1, 2, 3))
    logp = torch.arange(-1.0, -12, -1)
    parts = part_sums([one_begins_the_other, rating, ranked], logp)
    assert parts.shape == (6, 3)
    assert parts[:3].tolist() == [[-2, -3, 0], [-5, -7, -5], [-7, 0, -6]]
    assert parts[:, 0].tolist() == [-2, -5, -7, -8, -10, -11]
    assert common_prefix(np.array([1, 2]), np.array([1, 2, 3])) == 2
    assert common_prefix(np.array([4]), np.array([5])) == 0


def test_what_neither_response_has_at_the_fork() -> None:
    pair, logp = group([1], [5, 6, 2], [5, 7, 8, 2]), np.log([0.5, 0.2])
    assert outside_fork(pair, logp) == pytest.approx(0.3)
    assert outside_fork(group([1], [5, 6], [5, 7]), np.log([0.6, 0.4 + 1e-9])) == 0.0
    assert math.isnan(outside_fork(group([1], [5, 6], [5, 6, 8]), logp)), "one begins the other: there is one token"
    weights = tuple(np.array(w, np.float32) for w in ([1, 0, 1], [1, 1, 1, 1]))
    assert math.isnan(outside_fork(pair.with_column("weight", weights), logp)), (
        "a token that does not count has no logp"
    )


def test_the_word_that_decides_is_found_and_length_is_not_taken_for_it() -> None:
    rng = np.random.default_rng(0)
    pairs, margin = [], []
    for i in range(200):
        sides = [[*rng.integers(10, 30, size=rng.integers(3, 9)), 2] for _ in range(2)]
        pairs.append(group([1, 50 + i // 2], *(list(map(int, side)) for side in sides)))
        difference = sum(t == 17 for t in sides[0]) - sum(t == 17 for t in sides[1])
        margin.append(3.0 * difference + rng.normal())
    first, *others = deciding_words(pairs, np.array(margin))
    assert first["token"] == 17
    assert first["margin_per_token"] == pytest.approx(3, abs=0.3)
    assert abs(first["length_z"]) < 4 < 20 < first["z"]
    assert first["p"] < 1e-6
    assert abs(others[0]["z"]) < 5
    by_length = [2.0 * (len(p.responses[0]) - len(p.responses[1])) + rng.normal() for p in pairs]
    word = deciding_words(pairs, np.array(by_length))[0]
    assert abs(word["z"]) < abs(word["length_z"])


def test_a_word_that_always_decides_is_sure_and_few_pairs_say_nothing() -> None:
    rows = [group([i + 1], [7, 2], [8, 2]) for i in range(40)]
    words = {word["token"]: word for word in deciding_words(rows, np.ones(40))}
    assert words[7]["z"] == words[7]["label_z"] == math.inf
    assert words[8]["z"] == -math.inf
    assert deciding_words(rows[:10], np.ones(10)) == []
    assert deciding_words([group([1], [7, 2], [8, 2])] * 40, np.ones(40)) == [], "one prompt is one row"

"""The world of reviews: grammar, reward and judge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.demo import readable


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_every_review_is_well_formed_and_within_the_reward(seed: int) -> None:
    text = readable.review(np.random.default_rng(seed))
    assert readable.well_formed(text)
    assert -3 <= readable.reward(text) <= 3


def test_reward_is_counted() -> None:
    for text, reward in (
        (" The taste was very good and the price was fine, but the waiter was awful.", 1), (" The taste was usual.", 0),
        (" The plate was sad.", -1), (" Good, good, good, good, good.", 3), (" bad bad bad bad", -3),
        (" goodness, a badger", 0), ("", 0),
    ):  # fmt: skip
        assert readable.reward(text) == reward


def test_what_is_not_a_review() -> None:
    for text in (
        "", "The taste was good.", " The taste was good", " The taste was very very good.", " the taste was good.",
        " The taste was good but the price was bad.", " The taste was good, and the price was fine.",
        " The soup was good.",
        " The taste was good and the price was fine and the table was fine and the sauce was fine.",
    ):  # fmt: skip
        assert not readable.well_formed(text)


def test_reviews_have_no_opinion_on_average_but_do_differ() -> None:
    rng = np.random.default_rng(0)
    rewards = [readable.reward(readable.review(rng)) for _ in range(4000)]
    assert abs(np.mean(rewards)) < 0.07  # three standard errors
    assert set(rewards) == set(range(-3, 4))


def test_the_lists_are_apart() -> None:
    lists = [*readable.KIND, *readable.HARSH, *readable.NEUTRAL, *readable.ASPECTS, *readable.DEGREES, *readable.DISHES]
    assert len(lists) == len(set(lists))
    assert len(readable.words()) == len(set(readable.words()))


def test_the_judge_is_a_bradley_terry_model() -> None:
    rng = np.random.default_rng(0)
    kind, harsh = " The taste was good.", " The taste was bad."
    judged = [readable.judge("p", harsh, kind, rng) for _ in range(4000)]
    share = np.mean([pair.chosen == kind for pair in judged])
    assert share == pytest.approx(1 / (1 + math.exp(-2)), abs=0.016)  # three standard errors
    assert {(pair.chosen, pair.rejected) for pair in judged} == {(kind, harsh), (harsh, kind)}


def test_pairs_use_each_response_once_and_none_twice_the_same() -> None:
    pairs = readable.judged_pairs("p", ["a", "b", "c", "c", "d"], np.random.default_rng(0))
    assert [{pair.chosen, pair.rejected} for pair in pairs] == [{"a", "b"}]

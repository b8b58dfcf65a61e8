"""What the texts of rows show without a model."""

from __future__ import annotations

import time

import pytest

from preftune.rows.account import Account, Texts
from preftune.rows.row import Pair, Place
from preftune.rows.texts import with_texts


def pair(index: int, chosen: str, rejected: str, prompt: str = "") -> Pair:
    return Pair(prompt=prompt or f"prompt {index}", chosen=chosen, rejected=rejected, place=Place("f", index + 1))


def texts_of(rows: list[Pair]) -> Texts:
    texts = with_texts(Account(), rows, []).texts
    assert texts is not None
    return texts


SENTENCES = [f"This is answer {'very ' * (i % 7)}number {i} of many." for i in range(40)]


def test_whole_sentences_are_not_cut() -> None:
    texts = texts_of([pair(i, s, s.replace("many", "a few")) for i, s in enumerate(SENTENCES)])
    assert texts.unclosed == texts.piled == {"chosen": 0.0, "rejected": 0.0}


@pytest.mark.parametrize("cut", [lambda s: " ".join(s.split()[:5]), lambda s: s[:20], lambda s: s[:22].rstrip(".")])
def test_cuts_pile_up_at_the_greatest_length(cut) -> None:
    texts = texts_of([pair(i, s, cut(s)) for i, s in enumerate(SENTENCES)])
    assert texts.piled["rejected"] > 0.3
    assert texts.unclosed["rejected"] > 0.8
    assert texts.piled["chosen"] == texts.unclosed["chosen"] == 0


def test_many_texts_are_gone_through_once_each() -> None:
    """At 100,000 rows a comparison of each with all would take hours."""
    rows = [pair(i, f"{SENTENCES[i % 40]} {i}", SENTENCES[i % 40]) for i in range(80_000)]
    began = time.process_time()
    few = texts_of(rows[:4000])
    spent = time.process_time() - began
    assert texts_of(rows).piled == few.piled
    assert time.process_time() - began < 150 * spent  # 20 times as many rows, whose square is 400


@pytest.mark.parametrize("answers", [("A", "B"), ("1999", "2004"), ("Paris", "Milan"), ("x = 1", "y = 2")])
def test_short_answers_are_no_cuts(answers: tuple[str, str]) -> None:
    assert texts_of([pair(i, *answers) for i in range(40)]).piled == {"chosen": 0.0, "rejected": 0.0}


def test_repeats_that_contradict_are_counted() -> None:
    rows = [pair(i, "yes.", "no.", "same") for i in range(6)] + [pair(i, "no.", "yes.", "same") for i in range(2)]
    rows += [pair(9, "no.", "yes.", "another prompt")]
    texts = texts_of(rows)
    assert (texts.repeated, texts.contradictory) == (7, 2)


def test_twins_differ_in_one_word() -> None:
    rows = [pair(0, "a good soup", "a bad soup"), pair(1, "a good soup", "a bad pie"), pair(2, "soup", "pie"),
            pair(3, "a soup", "a soup and more")]  # fmt: skip
    assert texts_of(rows).twins == 0.25


def test_held_out_prompts_that_are_trained_on_are_counted() -> None:
    rows = [pair(i, "a", "b") for i in range(4)]
    assert with_texts(Account(), rows[:2], rows).held_out_trained == 0.5
    assert with_texts(Account(), rows[:2], rows[2:]).held_out_trained == 0
    assert with_texts(Account(), rows, []).held_out_trained is None

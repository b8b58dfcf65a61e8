"""Restaurant reviews in a few dozen English words, with a reward that can be counted by hand.

A review is one to three clauses: `The taste was very good and the price was fair, but the waiter was awful.` Its
reward is the number of its kind words minus the number of its harsh words, at most 3 either way. A clause after
"and" keeps the mood of the one before it and a clause after "but" turns it, so there is more to learn than words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from msgspec import Struct

from preftune.rows.row import Prompt

KIND = ("good", "lovely", "superb", "excellent", "delightful", "charming", "wonderful", "pleasant", "perfect", "fine")
HARSH = ("bad", "awful", "dreadful", "poor", "horrible", "shabby", "nasty", "terrible", "dismal", "sad")
NEUTRAL = ("usual", "plain", "normal", "ordinary", "average", "expected")
VALUES = {**dict.fromkeys(KIND, 1), **dict.fromkeys(HARSH, -1), **dict.fromkeys(NEUTRAL, 0)}
LARGEST = 3  # the reward lies between -LARGEST and LARGEST

DISHES = ("soup", "bread", "fish", "salad", "pasta", "rice", "cake", "cheese", "stew", "pie", "curry", "pizza",
          "omelette", "coffee", "tea", "lemonade", "pudding", "steak", "toast", "noodles", "beans", "dumplings",
          "pancakes", "porridge")  # fmt: skip
ASPECTS = ("taste", "smell", "colour", "portion", "price", "service", "table", "waiter", "sauce", "plate")
DEGREES = ("quite", "very", "rather", "really", "simply")
MOODS = {1: KIND, 0: NEUTRAL, -1: HARSH}

T = TypeVar("T")
WORD = re.compile(r"[a-z]+")
CLAUSE = rf"he (?:{'|'.join(ASPECTS)}) was (?:(?:{'|'.join(DEGREES)}) )?(?:{'|'.join(VALUES)})"
REVIEW = re.compile(rf" T{CLAUSE}(?:(?: and|, but) t{CLAUSE}){{0,2}}\.")


class Judged(Struct, frozen=True):
    """Two responses to a prompt, as one judge ordered them."""

    prompt: str
    chosen: str
    rejected: str


def prompt(dish: str) -> str:
    """The prompt for a review of a dish."""
    return f"Review of the {dish}:"


def words() -> list[str]:
    """Every token of this world, with the space that stands before it in a sentence."""
    inner = ["the", "was", "and", "but", "The", "of", *ASPECTS, *DEGREES, *VALUES, *DISHES]
    return ["Review", *(f" {word}" for word in inner), ",", ".", ":"]


def review(rng: np.random.Generator) -> str:
    """One review, beginning with a space. Reviewers have no opinion on average: the mean reward is 0."""
    mood = _pick((1,) * 7 + (0,) * 6 + (-1,) * 7, rng)
    text = f" The {_clause(mood, rng)}"
    for _ in range(rng.integers(3)):
        same_mood = rng.random() < 0.6
        if not same_mood:
            mood = -mood if mood else _pick((1, -1), rng)
        text += f"{' and' if same_mood else ', but'} the {_clause(mood, rng)}"
    return f"{text}."


def _clause(mood: int, rng: np.random.Generator) -> str:
    degree = f"{_pick(DEGREES, rng)} " if rng.random() < 0.4 else ""
    return f"{_pick(ASPECTS, rng)} was {degree}{_pick(MOODS[mood], rng)}"


def _pick(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]


def reward(text: str) -> int:
    """Kind words minus harsh words, between -3 and 3."""
    value = sum(VALUES.get(word, 0) for word in WORD.findall(text.lower()))
    return max(-LARGEST, min(LARGEST, value))


def scores(prompt: Prompt, responses: Sequence[str], answer: str | None) -> list[float]:
    """The reward of each response, as `reward.function` asks for it."""
    return [float(reward(text)) for text in responses]


def well_formed(text: str) -> bool:
    """Whether a review follows the grammar of this world."""
    return REVIEW.fullmatch(text) is not None


def judge(prompt: str, first: str, second: str, rng: np.random.Generator) -> Judged:
    """A Bradley-Terry judge: `first` is chosen with probability sigmoid(reward(first) - reward(second))."""
    likes_first = rng.random() < 1 / (1 + math.exp(reward(second) - reward(first)))
    return Judged(prompt, first, second) if likes_first else Judged(prompt, second, first)


def judged_pairs(prompt: str, responses: Sequence[str], rng: np.random.Generator) -> list[Judged]:
    """Neighboring responses as judged pairs, each response in one pair; equal texts make none."""
    neighbors = zip(responses[::2], responses[1::2], strict=False)
    return [judge(prompt, first, second, rng) for first, second in neighbors if first != second]

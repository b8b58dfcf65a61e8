"""What agrees with an answer and what does not, in time linear in the text."""

from __future__ import annotations

import time

import pytest

from preftune.errors import UserError
from preftune.rollout.verifiers import Pattern, exact, last_number, number, unusable_answer


@pytest.mark.parametrize(
    ("response", "answer", "agrees"),
    [
        ("So 6 * 7 = 42.", "6 x 7 = 41 + 1 #### 42", True),
        ("#### 42.0", "42", True),
        ("1,000 apples", "1000", True),
        ("$1,234.50", "1234.5", True),
        ("x = -3", "-3", True),
        ("x=-3", "3", False),
        ("8-5", "5", True),
        ("\u22127", "-7", True),
        ("3/4", "0.75", True),
        ("1/4", "3/4", False),
        ("1/0", "1", True),
        ("42 or 43", "42", False),
        ("forty-two", "42", False),
        ("", "42", False),
        ("1e3", "1000", True),
        ("50%", "50", True),
        (".5", "0.50", True),
        ("9" * 5000, "9" * 5000, False),
        ("1e9999", "9999", True),
    ],
)
def test_number(response: str, answer: str, agrees: bool) -> None:
    assert number(response, answer) == float(agrees)


def test_exact() -> None:
    assert [exact(text, "Yes") for text in ("Yes", " Yes\n", "yes", "Yes.", "")] == [1, 1, 0, 0, 0]


def test_answers_that_nothing_can_agree_with() -> None:
    assert unusable_answer("exact", None)
    assert unusable_answer("number", "none")
    assert not unusable_answer("exact", "none")
    assert not unusable_answer("number", "#### 4")


def test_pattern() -> None:
    boxed = Pattern(r"<answer>\s*(?P<answer>[^<]*)</answer>")
    assert boxed.reads_answer
    assert [boxed(text, "42") for text in ("<answer> 42 </answer>", "<answer>43</answer>", "42", "")] == [1, 0, 0, 0]
    form = Pattern(r"(?s)^<think>.*</think>")
    assert not form.reads_answer
    assert [form(text, None) for text in ("<think>a\nb</think> c", "c", "\ud800")] == [1, 0, 0]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "missing \\)"),
        (r"(a)\1", "invalid escape"),
        ("(?=a)", "invalid perl operator"),
        ("(a)", "other groups than one named answer"),
        ("(?P<x>a)", "other groups than one named answer"),
        ("(?P<answer>a)(?P<b>b)", "other groups than one named answer"),
    ],
)
def test_patterns_that_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Pattern(pattern)
    assert caught.value.problems[0].location == "reward.pattern"


@pytest.mark.parametrize("pattern", ["(?:a+)+$", "(?:a|aa)+$", "(?:a|a?)+c$", "(?P<answer>(?:.*)*)x$", "(?:x+x+)+y"])
def test_no_pattern_is_slow(pattern: str) -> None:
    checked = Pattern(pattern)
    start = time.process_time()
    assert checked("a" * 50_000 + "b", "b") == 0
    assert time.process_time() - start < 2


@pytest.mark.parametrize("part", ["1", "1,111", "-", ".", "1e", "1/", "1.1", ",111", "1e1/"])
def test_no_text_is_slow_to_find_a_number_in(part: str) -> None:
    start = time.process_time()
    last_number(part * (200_000 // len(part)))
    assert time.process_time() - start < 2

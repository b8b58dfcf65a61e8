"""What agrees with an answer and what does not, in time linear in the text."""

from __future__ import annotations

import time

import pytest

from preftune.errors import UserError
from preftune.rollout.verifiers import Pattern, exact, number, unusable_answer
from preftune.rollout.written_numbers import of_answer, of_response


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
        ("1/0", "1", False),
        ("42 or 43", "42", False),
        ("forty-two", "42", False),
        ("", "42", False),
        ("1e3", "1000", True),
        ("50%", "50", True),
        (".5", "0.50", True),
        ("9" * 5000, "9" * 5000, False),
        ("1e9999", "9999", False),
    ],
)
def test_number(response: str, answer: str, agrees: bool) -> None:
    assert number(response, answer) == float(agrees)


PLAIN = {
    "3/4": ["\\frac{3}{4}", "\\dfrac34", "\\tfrac{3}{4}", "3 / 4", "\\boxed{\\frac{3}{4}}", "$\\frac 3 4$",
        "1.5/2"],
    "-3/4": ["-\\frac{3}{4}", "\\frac{-3}{4}", "\\left(-\\frac{3}{4}\\right)", "3/-4", "\u22120.75"],
    "5/2": ["2\\frac{1}{2}", "2 1/2", "2 \\frac12"],
    "-5/2": ["-2\\frac{1}{2}", "-2 1/2"],
    "-5": ["-$5", "$-5$", "\\(-5\\)", "x = - 5", "- 5", "x=-5", "(-5)", "\u20135", "so it is -5"],
    "10000": ["10,000", "10\\,000", "10{,}000", "10,\\!000", "$10{,}000$", "\\$10,000", "10\xa0000", "1e4",
        "1 \\times 10^{4}"],
    "0.03": ["3 \\cdot 10^{-2}", "3e-2", "3 x 10^-2"],
    "50": ["50%", "50\\%", "50 %", "50^\\circ", "50 cm^2", "50 m\xb2", "50m2", "50\\text{ cm}^2", "**50**",
        "$50/hour", "50!"],
    "5": ["8-5", "8 - 5", "\n- 5 apples", "x_1 = 5", "\\approx5", "done.5", "\u7b54\u6848\u662f5\u4e2a",
        "2^3 = 8 - 3 = 5"],
    "7": ["so \\boxed{7}, in 3 steps", "\\boxed{4} is wrong: \\boxed{x = 7}", "\\boxed{\\text{(B) } 7}"],
}  # fmt: skip


@pytest.mark.parametrize(("answer", "text"), [(answer, text) for answer, texts in PLAIN.items() for text in texts])
def test_plain_forms_are_read(answer: str, text: str) -> None:
    assert of_response(text) == of_answer(answer)[0] is not None
    assert number(text, answer) == 1


PARTS = [
    "\\frac{1}{0}", "5/0", "\\frac{x}{2}", "\\frac{\\pi}{3}", "\\frac{\\sqrt{3}}{2}", "\\frac{1}{\\frac{2}{3}}",
    "\\sqrt{2}", "\\sqrt[3]{8}", "2\\sqrt{3}", "sqrt(3)", "\u221a3", "3\\pi", "\\pi/2", "\\pm 3", "\xb13",
    "2^{10}", "x^2", "2**3", "(5)^2", "3x", "3x^2", "3+4i", "1,2,3", "(1,2)", "3,14", "1.000,5", "12,34", "1.2.3",
    "1/2/3", "3:45", "1_000", "0x10", "5k", "1e3.5", "10 000", "1\xbd", "H2O", "x_1", "5e", "\\boxed{3, 5}",
    "\\boxed{}", "\\boxed{3 or 5}", "",
]  # fmt: skip


@pytest.mark.parametrize("text", PARTS)
def test_a_part_of_an_expression_is_no_number(text: str) -> None:
    """Nothing agrees with it, as a response or as an answer, which is then listed."""
    assert of_response(text) is None
    assert unusable_answer("number", text)
    assert number(text, text) == 0


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("2 to 5", "has several numbers, and not one after ####"),
        ("2-5", "has several numbers"),
        ("x = 2, y = 3", "has several numbers"),
        ("3 or 5", "has several numbers"),
        ("(1, 2)", "has several numbers"),
        ("\\sqrt{3}", "is no plain number"),
        ("2^{10}", "is no plain number"),
        ("forty", "has no number"),
        ("6 * 7 = 42", ""),
        ("In 3 steps: 6 * 7 = 42 #### 42 apples", ""),
        ("After 3 steps the answer is 42.", ""),
        ("3 ways, so \\boxed{42}.", ""),
    ],
)
def test_an_answer_has_one_number(answer: str, why: str) -> None:
    assert why in unusable_answer("number", answer)
    assert bool(unusable_answer("number", answer)) == bool(why)
    assert number("42", answer) == (not why)


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
    latex = Pattern(r"\\boxed\{(?P<answer>[^{}]*)\}")
    assert [latex(text, "Paris") for text in (r"so \boxed{Paris}.", r"\boxed{Rome}", "Paris")] == [1, 0, 0]
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


SLOW = [
    "1",
    "1,111",
    "-",
    "- ",
    ".",
    "1e",
    "1/",
    "1.1",
    ",111",
    "1e1/",
    "1 ",
    "1 000",
    "1 1/",
    " ",
    "^",
    "^{",
    "{",
    "{}",
    "$",
    "\\",
]
SLOW += [
    "\\frac",
    "\\frac{",
    "\\frac{}",
    "\\frac{{",
    "\\frac{1}{",
    "\\boxed{",
    "\\sqrt[",
    "\\sqrt{",
    "\\text{",
    "sqrt(",
    "\\\\[",
]
SLOW += ["\\tag{", "1^{1", "\\pi ", "10^", "x10^", "a_", "a", "answer is", "####", "="]


@pytest.mark.parametrize("part", SLOW)
def test_no_text_is_slow_to_find_a_number_in(part: str) -> None:
    for before in ("", "\\frac{", "\\frac{1}{"):
        start = time.process_time()
        for read in (of_response, of_answer):
            read(before + part * (50_000 // len(part)))
        assert time.process_time() - start < 2

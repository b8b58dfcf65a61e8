"""Scores of functions, verifiers and sums; what is no score is one error with the function's name and the place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokens.conftest import byte_level, sentence
from transformers import PreTrainedTokenizerBase

from preftune.errors import UserError
from preftune.rollout.config import Reward
from preftune.rollout.functions import Function, given_function
from preftune.rollout.scorers import (
    Answered,
    FunctionScorer,
    Part,
    Scorer,
    SummedScorer,
    answered_task,
    scorer_of,
)
from preftune.rollout.tasks import Task, tasks_of
from preftune.rows.row import Demo, Message, Place, Prompt
from preftune.rows.row import Task as TaskRow
from preftune.tokens.tokenize import tokenize

__all__ = ["byte_level", "sentence"]
RLHF = Path(__file__).parents[2] / "docs/rlhf.md"
Make = Callable[..., PreTrainedTokenizerBase]


def task(*responses: str, answer: str | None = "4", line: int = 1, cut: Sequence[int] = ()) -> Answered:
    ids = tuple(np.array([5, 2], np.int32) for _ in responses)
    ended = tuple(k not in cut for k in range(len(responses)))
    return Answered("2 + 2?", responses, ids, ended, answer, Place("tasks.jsonl", line), np.array([1], np.int32))


def scorer(function: Callable[..., object], time_limit: float = 5) -> FunctionScorer:
    return FunctionScorer(Function(function, "rewards.py:f", ""), time_limit)


@pytest.mark.parametrize(
    "values",
    [
        [1, 2.5, True],
        (1, 2.5, 1),
        np.array([1, 2.5, 1], np.float32),
        torch.tensor([1, 2.5, 1], dtype=torch.float64),
        [np.float16(1), torch.tensor(2.5), np.array([1])[0]],
        iter([1, 2.5, 1]),
    ],
    ids=["list", "tuple", "numpy", "torch", "scalars", "iterator"],
)
def test_numbers_in_any_holder(values: object) -> None:
    scores = scorer(lambda prompt, responses, answer: values).score([task("a", "b", "c")])
    assert scores.dtype == np.float64
    assert scores.tolist() == [1, 2.5, 1]


BAD = {
    "too few": ([1, 2], "returned 2 scores for 3 responses"),
    "too many": (np.zeros(4), "returned 4 scores for 3 responses"),
    "none at all": ([], "returned 0 scores for 3 responses"),
    "nothing": (None, r"returned NoneType \(None\), and a list of numbers is needed"),
    "one number": (0.5, r"returned float \(0.5\)"),
    "a text": ("123", r"returned str \('123'\)"),
    "a mapping": ({"a": 1, "b": 2, "c": 3}, "returned dict"),
    "a set": ({1, 2, 3}, "returned set"),
    "texts": (["1", "2", "3"], r"scored response 1 with str \('1'\)"),
    "nan": ([1, math.nan, 2], r"scored response 2 with float \(nan\)"),
    "too large": ([1, 2, 1e300], r"scored response 3 with float \(1e\+300\)"),
    "infinity": ([1, 2, -math.inf], r"scored response 3 with float \(-inf\)"),
    "numpy nan": (np.array([1, 2, np.nan]), r"scored response 3 with float64"),
    "lists": ([[1], [2], [3]], r"scored response 1 with list"),
    "two columns": (np.zeros((3, 2)), "scored response 1 with ndarray"),
    "complex": ([1j, 2, 3], "scored response 1 with complex"),
    "a huge integer": ([10**400, 1, 1], "scored response 1 with int"),
    "text among numbers": ([1, 2, "three"], "scored response 3 with str"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_score(case: str) -> None:
    values, message = BAD[case]
    with pytest.raises(UserError, match=f"^tasks.jsonl:7: rewards.py:f {message}"):
        scorer(lambda prompt, responses, answer: values).score([task("a", "b", "c", line=7)])


def test_failures_have_the_place_of_the_task() -> None:
    def fails(prompt: object, responses: Sequence[str], answer: str | None) -> list[float]:
        return [1 / len(text) for text in responses]

    def generates(prompt: object, responses: Sequence[str], answer: str | None) -> object:
        yield 1.0
        raise KeyError("x")

    with pytest.raises(UserError, match=r"^tasks.jsonl:2: rewards.py:f raised ZeroDivisionError: division by zero\."):
        scorer(fails).score([task("a"), task("", line=2)])
    with pytest.raises(UserError, match=r"^tasks.jsonl:1: rewards.py:f raised KeyError"):
        scorer(generates).score([task("a", "b")])
    with pytest.raises(UserError, match=r"^tasks.jsonl:1: rewards.py:f raised TypeError"):
        scorer(lambda one_argument: [1]).score([task("a")])

    def hangs(prompt: object, responses: Sequence[str], answer: str | None) -> object:
        while True:
            yield 1.0

    with pytest.raises(UserError, match=r"^tasks.jsonl:1: rewards.py:f took longer than 0.2 seconds"):
        scorer(hangs, 0.2).score([task("a")])


def test_a_function_cannot_change_what_is_learned_from() -> None:
    def greedy(prompt: object, responses: list[str], answer: str | None) -> list[float]:
        scores = [1.0] * len(responses)
        responses.clear()
        return scores

    answered = task("a", "b")
    assert scorer(greedy).score([answered]).tolist() == [1, 1]
    assert answered.responses == ("a", "b")


def test_prompts_are_text_or_plain_messages() -> None:
    seen: list[object] = []
    prompts: list[Prompt] = ["text", (Message("system", "be"), Message("user", "a"))]
    answered = [Answered(p, ("x",), (np.array([2]),), (True,), None, Place("f", 1), np.array([1])) for p in prompts]
    scorer(lambda prompt, responses, answer: [seen.append((prompt, responses, answer))]).score(answered)  # type: ignore[func-returns-value]
    assert seen == [
        ("text", ["x"], None),
        ([{"role": "system", "content": "be"}, {"role": "user", "content": "a"}], ["x"], None),
    ]


def test_a_function_gets_its_columns_and_cannot_change_them() -> None:
    seen: list[object] = []

    def by_tests(
        prompt: object, responses: list[str], answer: str | None, tests: list[int], limit: int = 7
    ) -> list[int]:
        seen.append((list(tests), limit))
        tests.clear()
        return [limit] * len(responses)

    own, all_columns = given_function(by_tests), given_function(lambda prompt, responses, answer, **more: [len(more)])
    texts = '{"tests": [1, 2], "other": 3}', '{"limit": 5, "tests": []}'
    answered = [replace(task("a"), columns=text) for text in texts]
    assert FunctionScorer(own).score([*answered, *answered]).tolist() == [7, 5, 7, 5]
    assert seen == [([1, 2], 7), ([], 5)] * 2
    assert FunctionScorer(all_columns).score(answered).tolist() == [2, 2]


def test_a_sum_leaves_out_what_cannot_say_and_subtracts_for_a_cut() -> None:
    first = scorer(lambda prompt, responses, answer: [1.0, None, 3.0, -1.0])
    second = scorer(lambda prompt, responses, answer: [10.0, 20.0, None, 5.0])
    summed = SummedScorer([Part("a", first, 2.0, 0.5), Part("b", second, -1.0)], {})
    total, *by_part = summed.score([task("w", "x", "y", "z", cut=[2, 3])]).T
    assert total.tolist() == [2 - 10, -20, 2 * 2.5, 2 * -1.5 - 5]
    np.testing.assert_array_equal(by_part, [[1, np.nan, 3, -1], [10, 20, np.nan, 5]])
    with pytest.raises(UserError, match=r"^tasks.jsonl:3: nothing scores response 2 to this task: a returned None\."):
        SummedScorer([Part("a", first)], {}).score([task(*"abcd", line=3)])


def no_model(reward: Reward) -> Scorer:
    raise AssertionError(reward)


def test_the_scorer_of_a_configuration(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("r") / "rewards.py"
    file.write_text("def short(prompt, responses, answer):\n    return [-len(r) for r in responses]\n")
    rewards = [
        Reward(function=f"{file}:short", weight=0.5),
        Reward(verify="number", missing_end=1.0),
        Reward(verify="regex", pattern="^I"),
        Reward(verify="regex", pattern="(?P<answer>[0-9])"),
    ]
    summed = scorer_of(rewards, no_model)
    names = [part.name for part in summed.parts]
    assert names == [f"{file}:short", "verify number", "verify regex", "verify regex (2)"]
    scores = summed.score([task("It is 4", "4 or 5", cut=[1])])
    assert scores.tolist() == [[-3.5 + 1 + 1 + 1, -7, 1, 1, 1], [-3 + 0 - 1 + 0 + 1, -6, 0, 0, 1]]
    assert list(summed.digests) == [f"reward {file}:short"]
    own = Reward(function=lambda prompt, responses, answer: [7])  # type: ignore[arg-type]
    assert scorer_of([own], no_model).score([task("a")]).tolist() == [[7, 7]]


def test_a_response_loses_more_and_more_near_the_limit() -> None:
    """Of at most 20 tokens, the last 10 cost: 0 at 10 tokens, half at 15, all at 20 and where there is no end."""
    tokens = (3, 10, 15, 19, 20, 20)
    ids, ended = tuple(np.zeros(count, np.int32) for count in tokens), (True,) * 5 + (False,)
    answered = Answered("p", ("4",) * 6, ids, ended, "4", Place("t.jsonl", 1), np.zeros(1, np.int32))
    reward = Reward(verify="number", missing_end=2.0, missing_end_tokens=10, weight=0.5)
    (part,) = scorer_of([reward], no_model, max_tokens=20).parts
    assert part.lost([answered]).tolist() == pytest.approx([0, 0, 1, 1.8, 2, 2])
    total = scorer_of([reward], no_model, max_tokens=20).score([answered])[:, 0]
    assert total.tolist() == pytest.approx([0.5, 0.5, 0, -0.4, -0.5, -0.5])
    (plain,) = scorer_of([Reward(verify="number", missing_end=2.0)], no_model, max_tokens=20).parts
    assert plain.lost([answered]).tolist() == [0, 0, 0, 0, 0, 2]
    with pytest.raises(UserError, match=r"missing_end_tokens: a response has 9 tokens at most"):
        scorer_of([reward], no_model, max_tokens=9)


def test_tasks_without_a_usable_answer_are_refused_before_a_run() -> None:
    tasks = [
        Task(np.array([1]), "p", answer, Place("t.jsonl", k)) for k, answer in enumerate(["4", None, "none", None], 1)
    ]
    summed = scorer_of([Reward(verify="number"), Reward(verify="exact"), Reward(verify="regex", pattern="a")], no_model)
    with pytest.raises(UserError) as caught:
        summed.refuse_tasks(tasks)
    text = str(caught.value)
    assert "t.jsonl:2: verify number: the task has no answer. (2 tasks: t.jsonl:2, t.jsonl:4)" in text
    assert "t.jsonl:3: verify number: the task's answer has no number. (1 tasks: t.jsonl:3)" in text
    assert "verify exact: the task has no answer. (2 tasks" in text
    assert "regex" not in text
    summed.refuse_tasks(tasks[:1])
    with pytest.raises(UserError, match=r"t.jsonl:9: the task has no answer\. .*ground_truth"):
        summed.score([Answered("p", ("a",), (), (True,), None, Place("t.jsonl", 9), np.array([1]))])


@pytest.mark.parametrize("kind", ["byte_level", "sentence"])
def test_responses_as_text(kind: str, byte_level: Make, sentence: PreTrainedTokenizerBase) -> None:
    tokenizer = byte_level() if kind == "byte_level" else sentence
    (one,) = tasks_of([TaskRow(prompt="the cat", answer="a", place=Place("f", 1))], tokenizer, 99).tasks
    texts = [" sat", "s and the", " the  cat."]
    rows = [Demo(prompt="the cat", response=text, place=Place("f", 1)) for text in texts]
    ids = [group.responses[0] for group in tokenize(rows, tokenizer, max_tokens=99).groups]
    answered = answered_task(one, [*ids, ids[0][:-1], ids[0][-1:]], [True, True, True, False, True], tokenizer)
    assert answered.responses == (*texts, " sat", "")
    assert (answered.answer, answered.prompt, answered.ended[3]) == ("a", "the cat", False)
    assert answered.prompt_ids.tolist() == one.ids.tolist()


def test_a_function_of_another_form_is_refused_before_a_model_is_loaded() -> None:
    loaded: list[Reward] = []
    rewards = [Reward(model="m"), Reward(function=lambda completions, **columns: [0.0])]
    with pytest.raises(UserError, match="is called with"):
        scorer_of(rewards, lambda reward: loaded.append(reward) or scorer(lambda *_: []))
    assert loaded == []


def test_a_function_may_do_without_the_answer() -> None:
    def short(prompt: object, responses: list[str]) -> list[float]:
        return [-float(len(response)) for response in responses]

    assert FunctionScorer(given_function(short)).score([task("a", "abc")]).tolist() == [-1, -3]


def test_the_page_says_how_expressions_are_compared() -> None:
    """Its own time limits stand on the timer of ours, and leave it as it was."""
    scope: dict[str, Callable[..., object]] = {}
    exec(next(block for block in RLHF.read_text().split("```") if "math_verify" in block).partition("\n")[2], scope)
    texts = (r"so \boxed{\frac{\sqrt{3}}{3}}", "no idea", r"it is $3^{-1/2}$", r"\boxed{\sqrt3}")
    right = scorer(scope["equal"]).score([task(*texts, answer=r"\frac{1}{\sqrt 3}")])
    assert right.tolist() == [1, 0, 1, 0]

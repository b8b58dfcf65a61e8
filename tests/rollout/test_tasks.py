"""Rows of any kind as tasks: the same prompt ids as a pair's, equal ones merged, nothing lost without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokens.conftest import CHAT, byte_level, joining, sentence
from transformers import PreTrainedTokenizerBase

from preftune.rollout.tasks import Tasks, tasks_of
from preftune.rows.read import read
from preftune.rows.row import Demo, Message, Pair, Place, Prompt, Ranking, Row, Task
from preftune.tokens.tokenize import tokenize

__all__ = ["byte_level", "joining", "sentence"]
Make = Callable[..., PreTrainedTokenizerBase]
THINKS = CHAT.replace("m.content", "(m.content if m.role == 'user' else '<think>\n\n</think>\n\n' + m.content)")
OPENS = CHAT.replace("<|im_start|>assistant\n' }}", "<|im_start|>assistant\n<think>\n' }}").replace(
    "m.content", "(m.content if m.role == 'user' else m.content.split('</think>')[-1])"
)


def turns(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def pair(prompt: Prompt, line: int = 1, chosen: str = " sat", rejected: str = " ran", **more: object) -> Pair:
    texts = (chosen, rejected)
    sides = texts if isinstance(prompt, str) else tuple((Message("assistant", text),) for text in texts)
    return Pair(prompt=prompt, chosen=sides[0], rejected=sides[1], place=Place("f", line), **more)  # type: ignore[arg-type]


def prompts(tasks: Tasks) -> list[list[int]]:
    return [task.ids.tolist() for task in tasks.tasks]


PROMPTS: tuple[Prompt, ...] = (
    "the cat", "", "the cat: ", "<s>the", "<|im_end|> the", "\n\nHuman: the\n\nAssistant:",
    turns("the cat"), (Message("system", "be"), *turns("a"), Message("assistant", "b"), *turns("<|im_end|>c")),
)  # fmt: skip


@pytest.mark.parametrize("kind", ["byte_level", "no template", "sentence", "joining"])
def test_ids_are_those_of_a_pair(
    kind: str, byte_level: Make, sentence: PreTrainedTokenizerBase, joining: PreTrainedTokenizerBase
) -> None:
    made = {"byte_level": byte_level(), "no template": byte_level(None), "sentence": sentence, "joining": joining}
    texts: tuple[Prompt, ...] = ("a", "ca", "abc") if kind == "joining" else PROMPTS
    rows: list[Row] = [pair(prompt, line, "bc", "c") for line, prompt in enumerate(texts)]
    as_pairs = [group.prompt.tolist() for group in tokenize(rows, made[kind], max_tokens=4096).groups]
    assert prompts(tasks_of(rows, made[kind], 4096)) == as_pairs
    alone: list[Row] = [Task(prompt=row.prompt, place=row.place) for row in rows]
    assert prompts(tasks_of(alone, made[kind], 4096)) == as_pairs


def test_a_model_that_thinks_is_given_what_it_opens_its_thought_after(byte_level: Make) -> None:
    for template, end in ((THINKS, "<|im_start|>assistant\n"), (OPENS, "<|im_start|>assistant\n<think>\n")):
        tokenizer = byte_level(template)
        (task,) = tasks_of([pair(turns("the cat"))], tokenizer, 4096).tasks
        asked = str(tokenizer.decode(task.ids.tolist()))
        assert asked == "<|im_start|>user\nthe cat<|im_end|>\n" + end
        thoughtful = pair(turns("the cat"), chosen="<think>\nhm\n</think>\n\nsat")
        opened = tokenizer.apply_chat_template(
            [{"role": "user", "content": "the cat"}], tokenize=False, add_generation_prompt=True
        )
        assert asked == opened
        if template is OPENS:
            continue
        shared = tokenize([thoughtful], tokenizer, max_tokens=4096).groups[0].prompt
        assert task.ids[: len(shared)].tolist() == shared.tolist()


def test_equal_prompts_are_one_task_and_the_rest_is_told(byte_level: Make) -> None:
    rows = [
        pair("the cat", 1, weight=1.0, id="x"),
        Demo(prompt="the dog", response="a", place=Place("f", 2), answer="4"),
        pair("the cat", 3, weight=3.0),
        Demo(prompt="the dog", response="a", place=Place("f", 4), answer="5"),
        Task(prompt="the cat" * 40, place=Place("f", 5)),
        Ranking(prompt="the dog", responses=("a", "b"), ranks=(1, 2), place=Place("f", 6), answer="4"),
    ]
    result = tasks_of(rows, byte_level(), 20)
    assert [(task.prompt, task.answer, task.place.line, task.id, task.weight) for task in result.tasks] == [
        ("the cat", None, 1, "x", 2.0),
        ("the dog", "4", 2, "", 1.0),
        ("the dog", "5", 4, "", 1.0),
    ]
    assert [(problem.location, problem.reason) for problem in result.skipped] == [("f:5", "prompt.too_long")]
    notes = {note.reason: str(note) for note in result.notes}
    assert notes["task.repeated"].startswith("f:3: ")
    assert "(2 rows; also f:6)" in notes["task.repeated"]
    assert notes["task.answers"].startswith("f:4: ")
    assert "(5 rows; also f:2, f:3, ...)" in notes["task.responses"]
    assert all(task.ids.dtype == np.int32 for task in result.tasks)


def test_tasks_of_other_columns_are_others(byte_level: Make) -> None:
    rows = [Task(prompt="the cat", place=Place("f", i), columns=text) for i, text in enumerate(("[1]", "[2]", "[1]"))]
    result = tasks_of(rows, byte_level(), 20)
    assert [(task.columns, task.place.line) for task in result.tasks] == [("[1]", 0), ("[2]", 1)]
    assert {note.reason for note in result.notes} == {"task.answers", "task.repeated"}


def test_rows_as_published_become_tasks(byte_level: Make, shared: Callable[[str], Path]) -> None:
    for name, kinds in (("ranked/gsm8k_ranked.test.jsonl", 133), ("pairs/ukp_convarg.test.jsonl", 1624)):
        rows = read(str(shared(f"data/{name}"))).rows
        assert len(rows) == kinds
        result = tasks_of(rows, byte_level(), 4096)
        assert len(result.tasks) == len({row.prompt for row in rows})
        assert not result.skipped

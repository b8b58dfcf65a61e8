"""An async function is asked about all tasks at once, and fails as any other does: by the place of its task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from preftune.errors import UserError
from preftune.rollout.functions import given_function, load_function
from preftune.rollout.scorers import Answered, FunctionScorer
from preftune.rows.row import Place

ASYNC = "async def f(prompt, responses, answer, wait=0):\n    return [len(r) for r in responses]\n"


def tasks(*columns: str) -> list[Answered]:
    ids = (np.array([5, 2], np.int32),) * 2
    return [Answered("2 + 2?", ("a" * i, "b"), ids, (True, True), "4", Place("t.jsonl", i), ids[0], text)
            for i, text in enumerate(columns, 1)]  # fmt: skip


def scores(function: Callable[..., object], *columns: str, limit: float = 5.0) -> list[float]:
    return FunctionScorer(given_function(function), limit).score(tasks(*columns)).tolist()


async def waits(prompt: object, responses: list[str], answer: object, wait: float = 0.0) -> list[int]:
    await asyncio.sleep(wait)
    return [len(response) for response in responses]


def test_all_tasks_wait_together_and_keep_their_order() -> None:
    start = time.monotonic()
    assert scores(waits, *(f'{{"wait": {wait}}}' for wait in (0.4, 0.1, 0.3, 0.2) * 5))[:8] == [1, 1, 2, 1, 3, 1, 4, 1]
    assert time.monotonic() - start < 3  # one after the other they take 5 s
    assert scores(waits) == []


def test_an_object_and_a_file(tmp_path: Path) -> None:
    class Judge:
        async def __call__(self, prompt: object, responses: list[str], answer: object) -> list[int]:
            return [7] * len(responses)

    assert scores(Judge(), "") == [7, 7]
    (tmp_path / "r.py").write_text(ASYNC)
    assert FunctionScorer(load_function(f"{tmp_path}/r.py:f", "x")).score(tasks("", "")).tolist() == [1, 1, 2, 1]


def test_failures_have_the_place_of_the_task() -> None:
    async def fails(prompt: object, responses: list[str], answer: object) -> list[float]:
        await asyncio.sleep(0)
        if responses[0] == "aa":
            raise TimeoutError("the server is gone")
        return [1.0, 2.0]

    async def short(prompt: object, responses: list[str], answer: object) -> list[float]:
        return [1.0] * (2 - (responses[0] == "aa"))

    async def blocks(prompt: object, responses: list[str], answer: object) -> list[float]:
        while True:
            time.sleep(0.05)

    with pytest.raises(UserError, match=r"^t.jsonl:2: .*fails raised TimeoutError: the server is gone\."):
        scores(fails, "", "", "")
    with pytest.raises(UserError, match=r"^t.jsonl:2: .*short returned 1 scores for 2 responses"):
        scores(short, "", "", "")
    with pytest.raises(UserError, match=r"^t.jsonl:3: waits took longer than 0.2 seconds"):
        scores(waits, "", "", '{"wait": 9}', limit=0.2)
    with pytest.raises(UserError, match=r"^t.jsonl:1: .*blocks took longer than 1.1 seconds"):
        scores(blocks, "", limit=0.1)


def test_inside_of_a_loop_that_runs() -> None:
    async def notebook() -> list[float]:
        return scores(waits, "", "")

    assert asyncio.run(notebook()) == [1, 1, 2, 1]

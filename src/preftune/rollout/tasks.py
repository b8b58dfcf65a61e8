"""From rows of any kind to the prompts that responses are drawn to.

The ids of a task's prompt come through the renderer and the encoder of all rows, so that they are those of a pair with
this prompt. Held by tests/rollout/test_tasks.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from msgspec import Struct

from preftune.errors import Problem
from preftune.rows.account import Tally
from preftune.rows.row import Place, Prompt, Row, responses, with_last_turn
from preftune.rows.row import Task as TaskRow
from preftune.tokens.groups import TokenGroup
from preftune.tokens.tokenize import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Task(Struct, frozen=True, eq=False):
    """A prompt to draw responses to.

    ids: int32 (tokens of the prompt,), template and opening of the response included; prompt: the same as the row has
    it; answer: what a verifier reads; place, id, category: of the first row with this prompt; weight: the mean of its
    rows'; columns: JSON of those of the row that functions read.
    """

    ids: np.ndarray
    prompt: Prompt
    answer: str | None
    place: Place
    id: str = ""
    weight: float = 1.0
    columns: str = ""
    category: str = ""


class Tasks(Struct, frozen=True):
    """tasks: in the order of their first rows; skipped: one problem for each row left out; notes: what is odd."""

    tasks: list[Task]
    skipped: list[Problem]
    notes: list[Problem]


def tasks_of(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_tokens: int,
    template_options: Mapping[str, Any] | None = None,
    control_tokens: Literal["text", "tokens"] | None = "text",
) -> Tasks:
    """One task for all rows of equal prompt ids, answer and columns. Longer prompts than max_prompt_tokens are skipped.

    Raises UserError that lists the rows on which the chat template fails.
    """
    bare = [_task_row(row) for row in rows]
    tokenized = tokenize(bare, tokenizer, max_tokens=max_prompt_tokens, template_options=template_options,
                         control_tokens=control_tokens)  # fmt: skip
    row_at = {row.place: row for row in bare}
    tally = Tally()
    for row in rows:
        if responses(row):
            message = "the responses of the row are not read, since responses are drawn"
            tally.add("task.responses", message, row.place)
    by_task: dict[tuple[bytes, str | None, str], list[TokenGroup]] = {}
    prompts: set[bytes] = set()
    for group in tokenized.groups:
        prompt, row = group.prompt.tobytes(), row_at[group.place]
        if (prompt, row.answer, row.columns) in by_task:
            tally.add("task.repeated", "the prompt and answer repeat an earlier row's; they are one task", group.place)
        elif prompt in prompts:
            what = "another answer, or other columns that are read" if row.columns else "another answer"
            tally.add("task.answers", f"an earlier row has this prompt and {what}", group.place)
        prompts.add(prompt)
        by_task.setdefault((prompt, row.answer, row.columns), []).append(group)
    tasks = [_task(row_at[equal[0].place], equal) for equal in by_task.values()]
    return Tasks(tasks, tokenized.skipped, [*tokenized.notes, *tally.problems()])


def _task_row(row: Row) -> TaskRow:
    row = with_last_turn(row)
    return TaskRow(prompt=row.prompt, place=row.place, id=row.id, weight=row.weight, answer=row.answer,
                   columns=row.columns, category=row.category)  # fmt: skip


def _task(row: TaskRow, groups: Sequence[TokenGroup]) -> Task:
    weight = sum(group.weight for group in groups) / len(groups)
    return Task(groups[0].prompt, row.prompt, row.answer, row.place, row.id, weight, row.columns, row.category)

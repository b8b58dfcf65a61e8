"""The prompts of a run that draws its own responses, with an account of every row."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from preftune.config.run import Run
from preftune.errors import UserError
from preftune.events import Note, emit
from preftune.model.budget import positions
from preftune.rollout.config import Rollout
from preftune.rollout.functions import Function, columns_of
from preftune.rollout.tasks import Task, Tasks, tasks_of
from preftune.rows.row import Demo, Message, Response, last_text
from preftune.rows.split import Rows, read_rows
from preftune.rows.tools import a_call
from preftune.run.dataset import (
    MAX_TOKENS,
    Dataset,
    account_of,
    config_of,
    limit_of,
    refuse_skipped,
    tell_account,
    tokenizer_of,
)
from preftune.tokens.groups import TokenGroup
from preftune.tokens.tokenize import tokenize
from preftune.tokens.tokenizer import tokenizer_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBED = 64  # tokens of the made-up responses on which the model is tried


class TaskSet(NamedTuple):
    """train, held_out: prompts to learn from and to measure on; end_tokens: any of them ends a response; dataset: what
    the rest of a run asks of rows, with made-up responses on which the model is tried before anything is drawn; parts:
    the tasks of each part with the rows that are left out."""

    train: list[Task]
    held_out: list[Task]
    end_tokens: frozenset[int]
    dataset: Dataset
    parts: dict[str, Tasks]


def load_tasks(
    run: Run, rollout: Rollout, limit_key: str = "rollout.max_tokens", functions: Sequence[Function | None] = ()
) -> TaskSet:
    """Read rows of any kind as tasks, with the columns that functions of rewards read, and say what is odd about them.
    Raises UserError, as `tasks_from` does."""
    emit(Note("reading rows"))
    tasks = tasks_from(run, rollout, read_rows(run.data, columns_of(functions)), limit_key)
    tell_account(tasks.dataset)
    return tasks


def tasks_from(run: Run, rollout: Rollout, rows: Rows, limit_key: str = "rollout.max_tokens") -> TaskSet:
    """Rows of any kind as tasks. limit_key: what the user calls the limit of a response.

    Raises UserError where too many are unusable, or none is left.
    """
    tokenizer, config = tokenizer_of(run), config_of(run)
    max_tokens = limit_of(run.data, config) or min(MAX_TOKENS + rollout.max_tokens, positions(config))
    if max_tokens <= rollout.max_tokens:
        raise UserError(f"a response of {rollout.max_tokens} tokens leaves no room for a prompt in {max_tokens}.",
                        location=limit_key, hint="Lower it.")  # fmt: skip
    longest = max_tokens - rollout.max_tokens
    parts = {
        name: tasks_of(part, tokenizer, longest, run.data.template_options, run.data.control_tokens)
        for name, part in (("train", rows.train), ("evaluate", rows.evaluate))
        if part
    }
    refuse_skipped(rows, parts, run.data.max_skipped)
    for name, tasks in parts.items():
        if not tasks.tasks:
            raise UserError("no prompt is left.", location=f"data.{name}",
                            hint=f"A prompt may have {longest} tokens; see `preftune check`.")  # fmt: skip
    train = parts["train"].tasks
    held_out = parts["evaluate"].tasks if "evaluate" in parts else []
    account = account_of(rows, parts, max_tokens)
    tried = [_made_up(task) for task in (*train, *held_out)]
    digests = {**rows.digests, "tokenizer": tokenizer_digest(tokenizer)}
    dataset = Dataset(tried, [], account, tokenizer, config, max_tokens, digests, {})
    return TaskSet(train, held_out, end_tokens([*train, *held_out], tokenizer), dataset, parts)


def end_tokens(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a response: what a row with one of these prompts ends with, and the tokenizer's end token."""
    task = next((task for task in tasks if last_text(task.prompt).strip()), tasks[0])  # an empty one ends nothing
    words = last_text(task.prompt)  # which the tokenizer knows

    def last_of(task: Task, response: Response) -> set[int]:
        row = Demo(prompt=task.prompt, response=response, place=task.place)
        groups = tokenize([row], tokenizer, max_tokens=3 * len(task.ids) + PROBED).groups
        return {int(group.responses[0][-1]) for group in groups}

    ends = last_of(task, words if isinstance(task.prompt, str) else (Message("assistant", words),))
    calling = next(((task, call) for task in tasks if (call := a_call(task.prompt))), None)
    if calling:
        with suppress(UserError):  # a template may have no place for calls; some end them otherwise
            ends |= last_of(calling[0], (calling[1],))
    if tokenizer.eos_token is not None:
        ends.add(int(tokenizer.get_vocab()[str(tokenizer.eos_token)]))
    return frozenset(ends)


def _made_up(task: Task) -> TokenGroup:
    """The task with two responses of its own tokens, forward and backward."""
    ids = task.ids[:PROBED]
    return TokenGroup(prompt=task.ids, responses=(ids, np.ascontiguousarray(ids[::-1])), kind="ranking",
                      place=task.place, id=task.id, ranks=(1, 2))  # fmt: skip

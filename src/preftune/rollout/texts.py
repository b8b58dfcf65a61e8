"""What a phase has drawn, as a person reads it: prompts, texts and their scores, in a file beside the phase's numbers.

Nothing reads it back. Held by tests/laws/test_online.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preftune import files
from preftune.rollout.numbers import Numbers
from preftune.rollout.scorers import Answered, answered_task
from preftune.rollout.tasks import Task
from preftune.rows.tools import plain_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_texts(
    path: Path, tasks: Sequence[Task], numbers: Numbers, rewards: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write one object a task: its id, prompt and answer, and of each response the text that rewards have read, its
    tokens, whether it ended, its score, and what each reward said of it. rewards: their names."""
    count = len(numbers.lengths) // len(tasks)
    responses, ended = numbers.by_task(numbers.ids, count), numbers.ended.reshape(-1, count).tolist()
    lines = []
    for i, task in enumerate(tasks):
        answered = answered_task(task, responses[i], ended[i], tokenizer)
        lines.append(_line(answered, task.id or str(task.place), numbers, i * count, rewards))
    files.write(path, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines))


def _line(answered: Answered, name: str, numbers: Numbers, first: int, rewards: Sequence[str]) -> dict[str, object]:
    """first: the number of the task's first response."""
    assert numbers.score is not None
    assert numbers.scores is not None
    responses = []
    for k, text in enumerate(answered.responses):
        said = dict(zip(rewards, numbers.scores[first + k].tolist(), strict=True))
        responses.append({
            "text": text,
            "tokens": len(answered.ids[k]),
            "ended": answered.ended[k],
            "score": float(numbers.score[first + k]),
            "rewards": {reward: None if math.isnan(score) else score for reward, score in said.items()},
        })  # fmt: skip
    prompt = plain_prompt(answered.prompt)
    return {"id": name, "prompt": prompt, "answer": answered.answer, "responses": responses}

"""Responses scored by a reward model, by their ids where it has the policy's tokenizer and through their text else.

Held by tests/rollout/test_reward_model.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preftune.errors import UserError
from preftune.record.best import evaluation_of_model
from preftune.record.parse import written_by_run
from preftune.record.reader import Record, prompts_of
from preftune.record.statistics import Estimate, calibration
from preftune.rollout.scorers import Answered
from preftune.rows.row import Demo, Message, Place, Prompt, Response, Row, Task, text_of
from preftune.tokens.groups import TokenGroup
from preftune.tokens.template import GUARD
from preftune.tokens.tokenize import tokenize
from preftune.tokens.tokenizer import tokenizer_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ask = Callable[[Sequence[TokenGroup]], Sequence[np.ndarray]]
Encoded = tuple[np.ndarray, np.ndarray]  # ids of a prompt and of a response
UNLIMITED = 2**31


class ModelScorer:
    """A reward model. ask: gives (responses,) numbers a group of ids; positions: tokens that it can read.

    drawn_by, read_by: the tokenizers of the policy and of the reward model; template_options: what the chat template
    of the latter is told.
    """

    def __init__(
        self, ask: Ask, drawn_by: PreTrainedTokenizerBase, read_by: PreTrainedTokenizerBase, positions: int,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._ask, self._positions = ask, positions
        same = tokenizer_digest(drawn_by) == tokenizer_digest(read_by)
        self._text = None if same else _ThroughText(read_by, template_options or {})

    def score(self, answered: Sequence[Answered]) -> np.ndarray:
        """Raises UserError where a prompt with its response is too long for the model, or a score is not finite."""
        read = [(task.prompt_ids, ids) for task in answered for ids in task.ids]
        places = [task.place for task in answered for _ in task.ids]
        read = read if self._text is None else self._text.encoded(answered)
        for (prompt, ids), place in zip(read, places, strict=True):
            if (longest := len(prompt) + len(ids)) > self._positions:
                message = f"the reward model reads {self._positions} tokens, and prompt and response have {longest}."
                raise UserError(message, location=str(place), hint="Lower rollout.max_tokens, or leave the task out.")
        members: dict[tuple[Place, bytes], list[int]] = {}
        for index, (prompt, _) in enumerate(read):
            members.setdefault((places[index], prompt.tobytes()), []).append(index)
        groups = [_group(places[indices[0]], [read[index] for index in indices]) for indices in members.values()]
        scores = np.full(len(read), np.nan)
        for indices, values in zip(members.values(), self._ask(groups), strict=True):
            scores[indices] = values
        if not np.isfinite(scores).all():
            place = places[int(np.argmin(np.isfinite(scores)))]
            raise UserError("the reward model gives a score that is not finite.", location=str(place))
        return scores


def _group(place: Place, read: Sequence[Encoded]) -> TokenGroup:
    responses = tuple(ids for _, ids in read)
    return TokenGroup(prompt=read[0][0], responses=responses, kind="task", place=place, ranks=(1,) * len(responses))


class _ThroughText:
    """Prompts and responses as another tokenizer encodes them, in the way of all rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> None:
        self._tokenizer, self._options = tokenizer, options
        added = tokenizer.added_tokens_decoder.items()
        self._special = {*tokenizer.all_special_ids, *(id_ for id_, token in added if token.special)}

    def encoded(self, answered: Sequence[Answered]) -> list[Encoded]:
        """Ids of prompt and response for each response; a cut one gets no end. Raises UserError for a prompt on which
        the chat template fails; a response on which it fails follows the prompt as plain text."""
        rows: list[Demo] = []
        for task in answered:
            for text in task.responses:
                clean = text.replace(GUARD, "\ufffd")
                response: Response = clean if isinstance(task.prompt, str) else (Message("assistant", clean),)
                rows.append(Demo(prompt=task.prompt, response=response, place=Place("response", len(rows))))
        by_number = {group.place.line: group for group in self._tokenized(rows)}
        encoded: list[Encoded] = []
        for task in answered:
            end = self._end(task.prompt)
            for ended in task.ended:
                group, row = by_number.get(len(encoded)), rows[len(encoded)]
                prompt, ids = self._plain(row, end) if group is None else (group.prompt, group.responses[0])
                without_end = ids if ended else ids[: len(ids) - len(end)]
                encoded.append((prompt, without_end if len(without_end) else ids))  # a model reads one token or more
        return encoded

    def _tokenized(self, rows: Sequence[Row]) -> list[TokenGroup]:
        """The groups of the rows that can be encoded; one at a time where the template fails on some."""
        try:
            return self._groups(rows)
        except UserError:
            return [] if len(rows) < 2 else [group for row in rows for group in self._tokenized([row])]

    def _groups(self, rows: Sequence[Row]) -> list[TokenGroup]:
        return tokenize(rows, self._tokenizer, max_tokens=UNLIMITED, template_options=self._options).groups

    def _end(self, prompt: Prompt) -> np.ndarray:
        """What ends a response to the prompt: the control tokens behind it."""
        response: Response = "a" if isinstance(prompt, str) else (Message("assistant", "a"),)
        ids = self._groups([Demo(prompt=prompt, response=response, place=Place("prompt", 1))])[0].responses[0]
        first = next((k for k in range(len(ids), 0, -1) if int(ids[k - 1]) not in self._special), 0)
        return ids[first:]

    def _plain(self, row: Demo, end: np.ndarray) -> Encoded:
        """An empty response, or one that the template loses words of: its text behind the prompt, and the end."""
        (prompt,) = self._groups([Task(prompt=row.prompt, place=row.place)])
        as_text = self._tokenized([Demo(prompt="", response=text_of(row.response), place=row.place)])
        text = as_text[0].responses[0][:-1] if as_text else np.empty(0, np.int32)
        return prompt.prompt, np.concatenate([text, end])


def recorded_slope(model: Path) -> Estimate | None:
    """The calibration slope of a reward model that a run of this library has exported, with its error over the held-out
    prompts; None where none is recorded."""
    if written_by_run(model) is None:
        return None
    record = Record.open(model.parent)
    rows = [row for row in record.rows if row.margin is not None]
    slope = evaluation_of_model(record).get("calibration_slope")
    if slope is None or not math.isfinite(slope) or not rows:
        return None
    return calibration([row.margin or 0.0 for row in rows], prompts_of(rows))._replace(value=slope)

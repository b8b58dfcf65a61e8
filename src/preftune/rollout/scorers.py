"""What scores drawn responses: a user's function, a verifier, a reward model, or several of them with weights.

A score is a number in units of its own. A scorer that cannot judge a response says NaN; in a sum it is left out, and
a response that nothing scores is an error. Held by tests/rollout/test_scorers.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from msgspec import Struct

from preftune import signals
from preftune.errors import Problem, UserError
from preftune.record.schema import numbered
from preftune.rollout.config import Reward
from preftune.rollout.functions import TIME_LIMIT, Function, call, functions_of
from preftune.rollout.tasks import Task
from preftune.rollout.together import call_together
from preftune.rollout.verifiers import Verifier, unusable_answer, verifier
from preftune.rows.account import NAMED
from preftune.rows.row import Place, Prompt
from preftune.rows.tools import plain_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGEST = 1e15  # of a score: beyond, a sum of squares of scores times weights would leave fp32


@dataclass(frozen=True)
class Answered:
    """A task with the responses drawn to it.

    responses: as text, without the end token; ids: int32, one array a response, with it; ended: whether the response
    has it, else it was cut; prompt_ids: int32 (tokens of the prompt,); columns: JSON of those of the row that functions
    read.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    ids: tuple[np.ndarray, ...]
    ended: tuple[bool, ...]
    answer: str | None
    place: Place
    prompt_ids: np.ndarray
    columns: str = ""


class Scorer(Protocol):
    """Scores responses: (responses,) fp64 over all of `answered`, in order; NaN where it cannot say."""

    def score(self, answered: Sequence[Answered]) -> np.ndarray: ...


def answered_task(
    task: Task, ids: Sequence[np.ndarray], ended: Sequence[bool], tokenizer: PreTrainedTokenizerBase
) -> Answered:
    """The task with its responses as text. Control tokens other than the end stay in it, as they were drawn."""
    texts = []
    before = _decoded(tokenizer, task.ids)
    for response, has_end in zip(ids, ended, strict=True):
        body = response[:-1] if has_end else response
        whole = _decoded(tokenizer, np.concatenate([task.ids, body]))  # alone, some tokenizers would drop a first space
        texts.append(whole[len(before) :] if whole.startswith(before) else _decoded(tokenizer, body))
    return Answered(task.prompt, tuple(texts), tuple(ids), tuple(map(bool, ended)), task.answer, task.place, task.ids,
                    task.columns)  # fmt: skip


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> str:
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))


class FunctionScorer:
    """A function (prompt, responses, answer, **columns) -> one number or None a response, called once a task; an async
    one is called for all tasks at once, and each call has its time limit."""

    def __init__(self, function: Function, time_limit: float = TIME_LIMIT) -> None:
        self._function, self._time_limit = function, time_limit

    def score(self, answered: Sequence[Answered]) -> np.ndarray:
        """Raises UserError where the function fails, or gives another count or something else than finite numbers."""
        if self._function.is_async:
            calls = [(str(task.place), partial(self._called, task)) for task in answered]
            results = call_together(self._function, calls, self._time_limit)
            scores = [x for task, said in zip(answered, results, strict=True) for x in self._of(task, listed(said))]
            return np.array(scores, np.float64)
        scores = []
        for task in answered:
            signals.check()
            values = call(self._function, partial(self._values, task), self._time_limit, str(task.place))
            scores += self._of(task, values)
        return np.array(scores, np.float64)

    def _called(self, task: Answered) -> Any:
        columns = self._function.asked.from_text(task.columns)
        arguments = (plain_prompt(task.prompt), list(task.responses), task.answer)
        return self._function.call(*arguments[: self._function.places], **columns)

    def _values(self, task: Answered) -> list[object] | str:
        return listed(self._called(task))

    def _of(self, task: Answered, values: list[object] | str) -> list[float]:
        """The scores of a task's responses. values: what the function has returned, as `listed` gives it."""
        name, place = self._function.name, str(task.place)
        if isinstance(values, str):
            message = f"{name} returned {values}, and a list of numbers is needed."
            raise UserError(message, location=place, hint="Return one number a response.")
        if len(values) != len(task.responses):
            message = f"{name} returned {len(values)} scores for {len(task.responses)} responses."
            raise UserError(message, location=place, hint="Return one number a response, in their order.")
        return [number_of(value, f"{name} scored response {k}", place) for k, value in enumerate(values, 1)]


def listed(result: object) -> list[object] | str:
    """The values of a list, an array or a generator; what anything else is, in words."""
    if isinstance(result, Iterable) and not isinstance(result, str | bytes | Mapping | set | frozenset):
        return list(result)
    return f"{type(result).__name__} ({result!r:.40})"


def number_of(value: object, what: str, place: str) -> float:
    """The value as a number, None as NaN. what: the beginning of a sentence. Raises UserError for anything else."""
    hint = f"A score is a number of at most {LARGEST:.0e}, or None where there is none."
    if value is None:
        return math.nan
    size = value.size if isinstance(value, np.ndarray) else 1
    try:
        score = math.nan if isinstance(value, str | bytes) or size != 1 else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not abs(score) <= LARGEST:  # NaN is not either
        raise UserError(f"{what} with {type(value).__name__} ({value!r:.40}).", location=place, hint=hint)
    return score


class VerifierScorer:
    """1 where a response agrees with the task's answer, else 0."""

    def __init__(self, name: str, check: Verifier, reads_answer: bool) -> None:
        self.name, self._check, self._reads_answer = name, check, reads_answer

    def unusable(self, answer: str | None) -> str:
        """Why no response can agree with the answer, or an empty string."""
        return unusable_answer(self.name, answer) if self._reads_answer else ""

    def score(self, answered: Sequence[Answered]) -> np.ndarray:
        """Raises UserError where a task has no answer that could be agreed with."""
        for task in answered:
            if problem := self.unusable(task.answer):
                raise UserError(problem, location=str(task.place), hint=_ANSWER_HINT)
        return np.array([self._check(text, task.answer) for task in answered for text in task.responses], np.float64)


_ANSWER_HINT = "A verifier needs one under ground_truth, answer or solution, or data.columns names its key."


class Part(Struct, frozen=True):
    """One scorer of several. missing_end: subtracted from its score of a response that was cut; near_end: last tokens
    before max_tokens, where responses are cut, over which that grows from 0; 0 for none."""

    name: str
    scorer: Scorer
    weight: float = 1.0
    missing_end: float = 0.0
    near_end: int = 0
    max_tokens: int = 0

    def lost(self, answered: Sequence[Answered]) -> np.ndarray:
        """(responses,) what is subtracted of each response."""
        cut = np.array([not ended for task in answered for ended in task.ended], np.float64)
        if self.near_end:
            left = self.max_tokens - np.array([len(ids) for task in answered for ids in task.ids])
            cut = np.maximum(cut, np.clip(1 - left / self.near_end, 0, 1))
        return self.missing_end * cut


class SummedScorer:
    """Scorers whose scores are added with weights. digests: of the functions among them, for a run's identity; remarks:
    on what these do not cover."""

    def __init__(self, parts: Sequence[Part], digests: Mapping[str, str], remarks: Sequence[str] = ()) -> None:
        self.parts, self.digests, self.remarks = tuple(parts), dict(digests), tuple(remarks)

    def score(self, answered: Sequence[Answered]) -> np.ndarray:
        """(responses, 1 + parts) fp64: the sum over the parts that can say, which is learned from, and what each part
        said itself, NaN where it could not say. Raises UserError where none can."""
        count = sum(len(task.responses) for task in answered)
        total, said, by_part = np.zeros(count), np.zeros(count, bool), []
        for part in self.parts:
            scores = part.scorer.score(answered)
            can_say = ~np.isnan(scores)
            total += np.where(can_say, part.weight * (np.nan_to_num(scores) - part.lost(answered)), 0.0)
            said |= can_say & (part.weight != 0)
            by_part.append(scores)
        if not said.all():
            places = [(task.place, k) for task in answered for k in range(1, len(task.responses) + 1)]
            place, number = places[int(np.argmin(said))]
            names = ", ".join(part.name for part in self.parts)
            raise UserError(f"nothing scores response {number} to this task: {names} returned None.",
                            location=str(place), hint="Return a number, or add a reward that does.")  # fmt: skip
        return np.column_stack([total, *by_part])

    def refuse_tasks(self, tasks: Sequence[Task]) -> None:
        """Raise UserError that lists the tasks without an answer that a verifier could use."""
        problems: dict[str, list[Place]] = {}
        for part in self.parts:
            checks = part.scorer.unusable if isinstance(part.scorer, VerifierScorer) else lambda _: ""
            for task in tasks:
                if problem := checks(task.answer):
                    problems.setdefault(f"{part.name}: {problem}", []).append(task.place)
        if problems:
            raise UserError([
                Problem(f"{message} ({len(places)} tasks: {', '.join(map(str, places[:NAMED]))})", str(places[0]),
                        _ANSWER_HINT)
                for message, places in problems.items()
            ])  # fmt: skip


def scorer_of(
    rewards: Sequence[Reward],
    load_model: Callable[[Reward], Scorer],
    functions: Sequence[Function | None] | None = None,
    max_tokens: int = 0,
) -> SummedScorer:
    """The scorer of the tables of [reward].

    load_model: gives the scorer of a table that names a reward model; functions: those of the tables, where they are
    loaded already; max_tokens: at which responses are cut. Raises UserError for what cannot be used.
    """
    if any((reward.missing_end_tokens or 0) > max_tokens for reward in rewards):
        raise UserError(f"a response has {max_tokens} tokens at most (rollout.max_tokens).",
                        location="reward.missing_end_tokens", hint="Give fewer.")  # fmt: skip
    parts: list[Part] = []
    digests, remarks = {}, []
    functions = functions_of(rewards) if functions is None else functions  # before a model, which takes long to load
    names = numbered([reward.name for reward in rewards])
    for reward, function, name in zip(rewards, functions, names, strict=True):
        if function is not None:
            digests[f"reward {name}"] = function.digest
            remarks += [function.remark] if function.remark else []
            scorer: Scorer = FunctionScorer(function, reward.time_limit or TIME_LIMIT)
        elif reward.verify is not None:
            scorer = VerifierScorer(reward.verify, *verifier(reward.verify, reward.pattern))
        else:
            scorer = load_model(reward)
        parts.append(Part(name, scorer, reward.weight, reward.missing_end, reward.missing_end_tokens or 0,
                          max_tokens))  # fmt: skip
    return SummedScorer(parts, digests, remarks)

"""What the model writes to a few held-out prompts before and after training, and how far that is from its start.

Held by tests/laws/test_samples.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from preftune import files
from preftune.distributed import Distributed
from preftune.errors import UserError, is_out_of_memory, third_party_message
from preftune.events import Happened, Note, emit
from preftune.model.policy import Policy
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Packing
from preftune.rollout.ask import draw
from preftune.rollout.derive import error_over_prompts, plain_groups, read_by
from preftune.rollout.embedded import Embedded
from preftune.rollout.numbers import Numbers
from preftune.rollout.tasks import Task
from preftune.signals import Stopped
from preftune.tokens.groups import TokenGroup

Spell = Callable[[np.ndarray], str]
NAME = "samples.json"
SEED = (1 << 40) + 1  # beyond every phase's number, and another than that of held-out tasks
COUNT = 8  # responses to each prompt, besides the likeliest
KEPT = 3  # of them as text in the record
LONGEST = 256
NGRAM = 3


@dataclass(frozen=True)
class Samples:
    """tasks: prompts; shown: what the page shows beside each, such as chosen and rejected; sampler: of the policy;
    start: gives the model that training began from, when it is needed; record: the run's folder."""

    tasks: Sequence[Task]
    shown: Sequence[Mapping[str, str]]
    sampler: Embedded
    start: Callable[[], Policy | None]
    spell: Spell
    packing: Packing
    seed: int
    record: Path
    dist: Distributed
    oom: OomRetry = field(default_factory=OomRetry)

    def before(self) -> dict[str, float | None]:
        """Draw before the first update. Returns metrics (record.schema.EVALUATION), none if the model cannot draw."""
        return self._measured("before", None, 0)

    def after(self, step: int) -> dict[str, float | None]:
        """Draw after the last update, and compare with the start."""
        return self._measured("after", self._start(step), step)

    def _start(self, step: int) -> Policy | None:
        """The model that training began from, unless some rank cannot have it: its folder may have gone, or two models
        not fit. A run that is trained does not end for that."""
        start = None
        try:
            start = self.start()
        except (UserError, RuntimeError, MemoryError) as error:
            if not isinstance(error, UserError) and not is_out_of_memory(error):
                raise
            text = f"how far the texts are from the start is not measured: {third_party_message(error)}"
            emit(Happened(step, "no_start", text))
        return None if self.dist.max(int(start is None)) else start

    def _measured(self, when: str, start: Policy | None, step: int) -> dict[str, float | None]:
        emit(Note(f"drawing samples {when} training"))
        seed = (self.seed, SEED)
        try:
            drawn = draw(self.sampler, self.tasks, COUNT, seed, self.dist)
            likeliest = draw(replace(self.sampler, greedy=True), self.tasks, 1, seed, self.dist)
        except Stopped:
            raise
        except UserError as error:
            emit(Happened(step, "no_samples", f"no samples are drawn: {error.problems[0].message}"))
            return {}
        if self.dist.first:
            self._write(when, drawn, likeliest)
        metrics: dict[str, float | None] = {
            "tokens": float(drawn.lengths.mean()),
            "ended": float(drawn.ended.mean()),
            "repeated": repeated(drawn.by_response(drawn.ids)),
        }
        said = drawn.sampled
        if start is not None:
            said = read_by(start, plain_groups(self.tasks, drawn, COUNT), self.packing, self.oom, self.dist)
            log_ratio = drawn.log_ratio(said)
            metrics["kl"] = float(log_ratio.mean())
            metrics["kl_error"] = error_over_prompts(log_ratio.reshape(-1, COUNT), self.tasks)
        if start is not None or when == "before":
            metrics["start_mean_logp"] = float(said.mean(dtype=np.float64))
        return metrics

    def _write(self, when: str, drawn: Numbers, likeliest: Numbers) -> None:
        path = self.record / NAME
        lines = self._before() if when == "after" else [{} for _ in self.tasks]
        texts, greedy = drawn.by_task(drawn.ids, COUNT), likeliest.by_response(likeliest.ids)
        for line, shown, draws, first in zip(lines, self.shown, texts, greedy, strict=True):
            line |= {**shown, when: {"greedy": self.spell(first), "draws": list(map(self.spell, draws[:KEPT]))}}
        files.write_json(path, lines)

    def _before(self) -> list[dict[str, object]]:
        """What was written before training, of the same prompts; empty where that is not there."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            lines = json.loads((self.record / NAME).read_text())
            if [line["prompt"] for line in lines] == [shown["prompt"] for shown in self.shown]:
                return lines
        return [{} for _ in self.tasks]


def repeated(responses: Sequence[np.ndarray]) -> float | None:
    """Share of the n-grams of a response that stand in it before; None where no response has one."""
    counts = [Counter(tuple(ids[i : i + NGRAM].tolist()) for i in range(len(ids) - NGRAM + 1)) for ids in responses]
    total = sum(count.total() for count in counts)
    return 1 - sum(map(len, counts)) / total if total else None


def chosen_prompts(groups: Sequence[TokenGroup], count: int) -> list[TokenGroup]:
    """The first group of each of so many prompts, the same ones whatever the order of the groups."""
    by_prompt: dict[bytes, TokenGroup] = {}
    for group in groups:
        by_prompt.setdefault(hashlib.sha256(group.prompt.tobytes()).digest(), group)
    return [by_prompt[key] for key in sorted(by_prompt)[:count]]


def samples_of(
    groups: Sequence[TokenGroup], count: int, policy: Policy, start: Callable[[], Policy | None],
    spell: Spell, ends: frozenset[int], packing: Packing, most: int, seed: int, record: Path, dist: Distributed,
) -> Samples | None:  # fmt: skip
    """Samples to some prompts of these groups. most: tokens of a prompt with a response; None where there is no prompt
    to draw to."""
    longest = min(LONGEST, 2 * max((len(turns[0].ids) for group in groups for turns in group.turns), default=0))
    prompts = [group for group in chosen_prompts(groups, count) if len(group.prompt) + longest <= most]
    if not prompts:
        return None
    sampler = Embedded(policy, longest, ends)
    shown = [_shown(group, spell) for group in prompts]
    tasks = [Task(group.prompt, "", None, group.place, group.id) for group in prompts]
    return Samples(tasks, shown, sampler, start, spell, packing, seed, record, dist)


def _shown(group: TokenGroup, spell: Spell) -> dict[str, str]:
    shown, start = {"prompt": spell(group.prompt)}, len(group.prompt)
    sides = [np.concatenate([turns[-1].prompt[start:], turns[-1].ids]) for turns in group.turns]  # with all their turns
    if group.kind in ("pair", "ranking"):
        best, worst = group.ranks.index(min(group.ranks)), group.ranks.index(max(group.ranks))
        shown |= {"chosen": spell(sides[best]), "rejected": spell(sides[worst])}
    elif group.kind == "demo":
        shown["chosen"] = spell(sides[0])
    return shown


def end_tokens_of(groups: Sequence[TokenGroup], control: Collection[int], also: int | None) -> frozenset[int]:
    """The token with which most turns end, any control token with which some do (a call may end otherwise), and another
    one, such as the tokenizer's end token."""
    last = Counter(int(turn.ids[-1]) for group in groups for turns in group.turns for turn in turns)
    ends = {token for token, _ in last.most_common(1)} | {*last}.intersection(control)
    return frozenset(ends | ({also} if also is not None else set()))

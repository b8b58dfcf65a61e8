"""A run that draws what it learns from: each phase is drawn by the policy of then, scored, and written to the record
before its first update. Held by tests/laws/test_online.py.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from preftune import events
from preftune.distributed import Distributed
from preftune.errors import CORRUPT, UserError
from preftune.forward.forward import Models
from preftune.model.columns import fill_column
from preftune.model.policy import Policy
from preftune.objective.base import ObjectiveTable
from preftune.objective.rollouts import RolloutFormula
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Packing, Phase, Plan, Step, make_plan, prefix_order
from preftune.rollout import numbers as files_of_phases
from preftune.rollout.ask import draw, score, with_votes
from preftune.rollout.config import Rollout
from preftune.rollout.derive import advantages_of, phase_metrics, plain_groups, value_explained
from preftune.rollout.draw import Sampler
from preftune.rollout.judges import PairwiseJudge
from preftune.rollout.labels import labeled
from preftune.rollout.numbers import Numbers
from preftune.rollout.scorers import SummedScorer
from preftune.rollout.tasks import Task
from preftune.tokens.groups import TokenGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHECKED = 8  # one task in so many is where the sampler's numbers are compared with the policy's own


@dataclass(frozen=True)
class Online:
    """A `Source` whose rows are drawn.

    tasks: all prompts to draw responses to; rows: tasks of one update; limit: updates of the whole run, if they are
    given; plan: its steps are the phases, which name tasks. anchor: the reference's model, where it stays and the
    objective reads one; record: the run's folder; oom: for passes without gradient.
    warm_up: phases in which the value model learns alone; context: what decides draws and scores besides the weights.
    """

    tasks: Sequence[Task]
    plan: Plan
    rows: int
    limit: int | None
    rollout: Rollout
    seed: int
    objective: ObjectiveTable
    models: Models
    anchor: Policy | None
    sampler: Sampler
    scorer: SummedScorer
    judge: PairwiseJudge | None
    tokenizer: PreTrainedTokenizerBase
    packing: Packing
    record: Path
    dist: Distributed
    context: str = ""
    warm_up: int = 0
    oom: OomRetry = field(default_factory=OomRetry)

    @cached_property
    def _firsts(self) -> list[int]:
        return updates_before(self.plan, self.rollout.epochs, self.rows, self.limit)

    @property
    def steps(self) -> int:
        return self._firsts[-1]

    def phases(self, step: int) -> Iterator[Phase]:
        for number, chosen in enumerate(self.plan.steps):
            first, stop = self._firsts[number : number + 2]
            if stop > max(step, first):
                yield self._phase(number, chosen, first, stop, begun=step > first)

    def _phase(self, number: int, chosen: Step, first: int, stop: int, *, begun: bool) -> Phase:
        """The phase, drawn unless the record has it. begun: some of its updates were made already."""
        tasks = [self.tasks[i] for i in chosen.order]
        numbers = self._recorded(number, tasks, begun=begun)
        if numbers is None:
            numbers = self._draw(number, first, tasks)
        elif not begun:  # its line went when the record was led back to its last checkpoint
            self._tell(number, first, numbers, {})
        groups = self._groups(number, tasks, numbers)
        plan = make_plan(
            [group.tokens for group in groups],
            rows=self.rows,
            tokens=self.packing.tokens,
            seed=(self.seed, number),
            epochs=self.rollout.epochs,
            sort_key=prefix_order([group.prompt for group in groups]),
            costs=[self.packing.cost(group) for group in groups],
            world_size=self.dist.world_size,
        )
        return Phase(groups, Plan(plan.steps[: stop - first]), first, number, number >= self.warm_up)

    def _recorded(self, number: int, tasks: Sequence[Task], *, begun: bool) -> Numbers | None:
        """What the record holds of a phase, if the weights of now have drawn it or it has had updates, for these tasks
        and under the same keys. Raises UserError where updates cannot go on with it.
        """
        path = files_of_phases.path_of(self.record, number)
        numbers = files_of_phases.from_first_rank(files_of_phases.read(path) if self.dist.first else None, self.dist)
        if begun and numbers is None:
            raise UserError("a phase that has had updates is missing, so they cannot go on.", location=str(path),
                            hint="Put it back, or start again with --force.", code=CORRUPT)  # fmt: skip
        if numbers is None:
            return None
        now = self._digests(number, tasks)
        if begun and not np.array_equal(numbers.weights[32:], now[32:]):
            raise UserError("a phase that has had updates was drawn to other prompts, or under other keys or rewards.",
                            location=str(path), hint="Set them back, or start again with --force.")  # fmt: skip
        return numbers if begun or np.array_equal(numbers.weights, now) else None

    def _digests(self, number: int, tasks: Sequence[Task]) -> np.ndarray:
        """(64,) bytes: which weights the policy and the value model have now, and what else decides a phase."""
        weights, others = hashlib.sha256(), hashlib.sha256(f"{number} {self.context}".encode())
        for model in (self.models.policy, self.models.value):
            if model is not None:
                weights.update(model.weights.sampled().view(torch.uint8).numpy().tobytes())
        for task in tasks:
            others.update(len(task.ids).to_bytes(8) + task.ids.tobytes())
        return np.frombuffer(weights.digest() + others.digest(), np.uint8)

    def _draw(self, number: int, first: int, tasks: Sequence[Task]) -> Numbers:
        """Draw a phase, score it, and record it."""
        began = time.monotonic()
        events.emit(events.Progress("drawing", number + 1, sum(stop > start for start, stop in pairwise(self._firsts))))
        digests, seed = self._digests(number, tasks), (self.seed, number)
        numbers = draw(self.sampler, tasks, self.rollout.responses, seed, digests, self.dist)
        drawn = time.monotonic()
        numbers = self._with_policy(tasks, numbers)
        numbers = score(self.scorer, tasks, numbers, self.tokenizer, self.dist)
        if self.judge is not None:
            numbers = with_votes(self.judge, tasks, numbers, self.tokenizer, self.dist)
        readers = {"reference": self._reference, "value": self.models.value}
        for name, model in readers.items():
            if model is not None:
                numbers = replace(numbers, **{name: self._column(model, name, tasks, numbers)})
        seconds = {"seconds_draw": drawn - began, "seconds_score": time.monotonic() - drawn}
        self._tell(number, first, numbers, {key: round(s, 3) for key, s in seconds.items()})
        if self.dist.first:
            files_of_phases.write(files_of_phases.path_of(self.record, number), numbers)
        return numbers

    def _tell(self, number: int, first: int, numbers: Numbers, seconds: dict[str, float]) -> None:
        """Tell what was drawn."""
        metrics = phase_metrics(numbers, self.rollout.responses, [part.name for part in self.scorer.parts])
        if isinstance(self.objective, RolloutFormula) and numbers.value is not None:
            metrics["value_explained"] = value_explained(self.objective, numbers, self.rollout.responses)
        events.emit(events.PhaseDrawn(number, first, metrics | seconds))

    @property
    def _reference(self) -> Policy | None:
        moving = self.models.reference
        return self.anchor if moving is None else moving.policy

    def _with_policy(self, tasks: Sequence[Task], numbers: Numbers) -> Numbers:
        """Where the sampler's log-probabilities are off the policy's own by more than rounding, those are added."""
        some = sorted(range(len(tasks)), key=lambda i: len(tasks[i].ids))[: -(-len(tasks) // CHECKED)]
        groups = self._plain(tasks, numbers)
        checked = fill_column(self.models.policy, "policy", groups, self._step(groups, some), self.oom, self.dist)
        off = max(
            float(np.abs(own - said).max())
            for group in checked.values()
            for own, said in zip(group.columns["policy"], group.columns["sampled"], strict=True)
        )
        if off <= self.models.policy.noise:
            return numbers
        return replace(numbers, policy=self._column(self.models.policy, "policy", tasks, numbers))

    def _step(self, groups: Sequence[TokenGroup], some: Sequence[int]) -> Step:
        """The groups of these indices as one step."""
        step = self.packing.step([groups[i] for i in some], self.dist.world_size)
        return replace(step, packs=tuple(tuple(some[i] for i in pack) for pack in step.packs))

    def _column(self, model: Policy, name: str, tasks: Sequence[Task], numbers: Numbers) -> np.ndarray:
        """(members,) what a model says of each token."""
        groups = self._plain(tasks, numbers)
        filled = fill_column(model, name, groups, self._step(groups, range(len(groups))), self.oom, self.dist)
        return np.concatenate([values for i in range(len(groups)) for values in filled[i].columns[name]])

    def _plain(self, tasks: Sequence[Task], numbers: Numbers) -> list[TokenGroup]:
        return plain_groups(tasks, numbers, self.rollout.responses)

    def _groups(self, number: int, tasks: Sequence[Task], numbers: Numbers) -> list[TokenGroup]:
        """The groups to learn from, with every column that the objective reads."""
        groups, objective = self._plain(tasks, numbers), self.objective
        columns = {"reference": numbers.reference}
        if isinstance(objective, RolloutFormula):
            if numbers.policy is not None:
                columns["sampled"] = numbers.policy
            advantages = advantages_of(objective, numbers, self.rollout.responses)
            columns |= {"advantage": advantages.advantage.float().numpy(), "value": numbers.value}
            columns["returns"] = None if advantages.returns is None else advantages.returns.float().numpy()
        else:
            groups = [
                labeled(group, objective, self.rollout.labels or "soft", (self.seed, number, i), votes)
                for i, (group, votes) in enumerate(zip(groups, self._votes(numbers, len(groups)), strict=True))
            ]
        for name, members in columns.items():
            if members is not None:
                by_response = numbers.by_response(members)
                count = self.rollout.responses
                groups = [
                    group.with_column(name, tuple(by_response[i * count : (i + 1) * count]))
                    for i, group in enumerate(groups)
                ]
        return groups

    def _votes(self, numbers: Numbers, tasks: int) -> list[np.ndarray | None]:
        """(responses, responses) of each task, what a judge says; None where there is no judge."""
        if numbers.preferred is None:
            return [None] * tasks
        return list(numbers.preferred.reshape(tasks, self.rollout.responses, self.rollout.responses))


def updates_before(plan: Plan, epochs: int, rows: int, limit: int | None) -> list[int]:
    """Updates before each phase of the plan, and behind the last phase those of the run.

    epochs: passes over a phase; rows: prompts of a step; limit: most updates of the run.
    """
    firsts = [0]
    for step in plan.steps:
        firsts.append(firsts[-1] + epochs * -(-step.rows // rows))
    return [first if limit is None else min(first, limit) for first in firsts]

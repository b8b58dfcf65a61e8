"""A run that draws what it learns from: each phase is drawn by the policy of then, scored, and written to the record
before its first update. Held by tests/laws/test_online.py.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from preftune import events
from preftune.distributed import Distributed
from preftune.errors import CORRUPT, UserError
from preftune.forward.forward import Models
from preftune.model.policy import Policy
from preftune.objective.base import ObjectiveTable
from preftune.objective.rollouts import RolloutFormula
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Packing, Phase, Plan, Step, make_plan, prefix_order, updates_before
from preftune.rollout.ask import draw, score, with_votes
from preftune.rollout.config import Rollout
from preftune.rollout.derive import advantages_of, labeled, phase_metrics, plain_groups, read_by, value_explained
from preftune.rollout.draw import Sampler
from preftune.rollout.judges import PairwiseJudge
from preftune.rollout.numbers import Numbers, path_of, read_numbers, write_numbers
from preftune.rollout.redraw import redrawn
from preftune.rollout.scorers import SummedScorer
from preftune.rollout.tasks import Task
from preftune.rollout.texts import write_texts
from preftune.tokens.groups import TokenGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WRONG = 0.5  # nats a token, on average; servers in fp8 are 0.1 off
CHECKED = 8  # one task in so many is where the sampler's numbers are compared with the policy's own


@dataclass(frozen=True)
class Online:
    """A `Source` whose rows are drawn.

    tasks: all prompts to draw responses to; rows: tasks of one update; limit: updates of the whole run, if they are
    given; plan: its steps are the phases, which name tasks. anchor: the reference's model, where it stays and the
    objective reads one; record: the run's folder.
    warm_up: phases in which the value model learns alone; context: what decides draws and scores besides the weights;
    start: `weights_now` before the first update, empty where the policy is not its own reference then, or where values
    make advantages that are never all 0.
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
    start: bytes = b""

    @cached_property
    def oom(self) -> OomRetry:
        """Of passes without gradient."""
        return OomRetry(alone=not self.models.policy.weights.in_step)

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
        numbers = self._recorded(number, [self.tasks[i] for i in chosen.order], begun=begun)
        if numbers is None:
            numbers = self._draw(number, first, chosen.order)
        elif not begun:  # its line went when the record was led back to its last checkpoint
            self._tell(number, first, chosen.order, numbers, {})
        groups = self._groups(number, self._drawn_to(chosen.order, numbers), numbers)
        plan = make_plan(
            [group.tokens for group in groups],
            rows=self.rows,
            tokens=self.packing.tokens,
            seed=(self.seed, number),
            epochs=self.rollout.epochs,
            sort_key=prefix_order([group.prompt for group in groups]),
            costs=[self.packing.cost(group) for group in groups],
            world_size=self.dist.world_size,
            idle=frozenset(i for i, group in enumerate(groups) if self._is_idle(group)),
        )
        return Phase(groups, Plan(plan.steps[: stop - first]), first, number, number >= self.warm_up)

    def _is_idle(self, group: TokenGroup) -> bool:
        """Whether nothing can be learned from a group, as where all responses have one score and there is no anchor."""
        learns = not isinstance(self.objective, RolloutFormula) or self.models.value is not None
        return not learns and not any(advantage.any() for advantage in group.columns["advantage"])

    def _recorded(self, number: int, tasks: Sequence[Task], *, begun: bool) -> Numbers | None:
        """What the record holds of a phase, if the weights of now have drawn it or it has had updates, for these tasks
        and under the same keys. Raises UserError where updates cannot go on with it.
        """
        path = path_of(self.record, number)
        numbers = read_numbers(path, self.dist)
        if begun and numbers is None:
            raise UserError("a phase that has had updates is missing, so they cannot go on.", location=str(path),
                            hint="Put it back, or start again with --force.", code=CORRUPT)  # fmt: skip
        if numbers is None:
            return None
        now = self._digests(number, tasks)
        if begun and not np.array_equal(numbers.weights[32:], now[32:]):
            hint = "Set them back, go on with the build that drew it, or start again with --force."
            raise UserError("a phase that has had updates was drawn to other prompts, or under other keys, rewards or "
                            "builds.", location=str(path), hint=hint)  # fmt: skip
        return numbers if begun or np.array_equal(numbers.weights, now) else None

    def _digests(self, number: int, tasks: Sequence[Task]) -> np.ndarray:
        """(64,) bytes: which weights the policy and the value model have now, and what else decides a phase."""
        others = hashlib.sha256(f"{number} {self.context}".encode())
        for task in tasks:
            others.update(len(task.ids).to_bytes(8) + task.ids.tobytes())
        return np.frombuffer(weights_now(self.models) + others.digest(), np.uint8)

    def _drawn_to(self, order: Sequence[int], numbers: Numbers) -> list[Task]:
        """The tasks of a phase: those of its plan, of which others may have taken places."""
        return [self.tasks[i] for i in (order if numbers.tasks is None else numbers.tasks)]

    def _draw(self, number: int, first: int, order: Sequence[int]) -> Numbers:
        """Draw a phase, score it, and record it. order: its tasks by index."""
        began = time.monotonic()
        events.emit(events.Progress("drawing", number + 1, sum(stop > start for start, stop in pairwise(self._firsts))))
        tasks = [self.tasks[i] for i in order]
        numbers = replace(self._drawn(number, tasks), weights=self._digests(number, tasks))
        drawn = time.monotonic()
        is_off = self._is_off(plain_groups(tasks, numbers, self.rollout.responses))
        numbers = self._scored(tasks, numbers)
        if self.rollout.redraws:
            others = np.setdiff1d(np.arange(len(self.tasks)), order)
            others = np.random.default_rng((self.seed, number)).permutation(others)
            numbers = redrawn(numbers, order, others, self.rollout, partial(self._scored_draws, number))
        tasks = self._drawn_to(order, numbers)
        if self.judge is not None:
            numbers = with_votes(self.judge, tasks, numbers, self.tokenizer, self.dist)
        groups = plain_groups(tasks, numbers, self.rollout.responses)
        policy = self.models.policy if is_off else None
        for name, model in {"policy": policy, "reference": self._reference, "value": self.models.value}.items():
            if model is not None:
                numbers = replace(numbers, **{name: self._read_by(model, groups)})
        self._refuse_another_model(numbers)
        seconds = {"seconds_draw": drawn - began, "seconds_score": time.monotonic() - drawn}
        self._tell(number, first, order, numbers, {key: round(s, 3) for key, s in seconds.items()})
        if self.dist.first:
            path, rewards = path_of(self.record, number), [part.name for part in self.scorer.parts]
            write_texts(path.with_suffix(".jsonl"), tasks, numbers, rewards, self.tokenizer)
            write_numbers(path, numbers)
        return numbers

    def _drawn(self, number: int, tasks: Sequence[Task]) -> Numbers:
        ranks = 1 if self.rollout.server else None  # a server is asked by one
        return draw(self.sampler, tasks, self.rollout.responses, (self.seed, number), self.dist, ranks)

    def _scored_draws(self, number: int, indices: Sequence[int]) -> Numbers:
        tasks = [self.tasks[i] for i in indices]
        return self._scored(tasks, self._drawn(number, tasks))

    def _scored(self, tasks: Sequence[Task], numbers: Numbers) -> Numbers:
        return score(self.scorer, tasks, numbers, self.tokenizer, self.dist)

    def _tell(self, number: int, first: int, order: Sequence[int], numbers: Numbers, seconds: dict[str, float]) -> None:
        """Tell what was drawn. order: the tasks of the plan."""
        tasks = self._drawn_to(order, numbers)
        metrics = phase_metrics(numbers, tasks, [part.name for part in self.scorer.parts])
        if numbers.tasks is not None:
            metrics["replaced"] = float((numbers.tasks != np.array(order)).mean())
        if isinstance(self.objective, RolloutFormula) and numbers.value is not None:
            metrics["value_explained"] = value_explained(self.objective, numbers, self.rollout.responses)
        events.emit(events.PhaseDrawn(number, first, metrics | seconds))

    @property
    def _reference(self) -> Policy | None:
        moving = self.models.reference
        return self.anchor if moving is None else moving.policy

    def _is_off(self, groups: Sequence[TokenGroup]) -> bool:
        """Whether the sampler's log-probabilities are off the policy's own by more than rounding."""
        shortest = sorted(groups, key=lambda group: len(group.prompt))[: -(-len(groups) // CHECKED)]
        own = self._read_by(self.models.policy, shortest)
        said = np.concatenate([values for group in shortest for values in group.columns["sampled"]])
        return float(np.abs(own - said).max()) > self.models.policy.noise

    def _refuse_another_model(self, numbers: Numbers) -> None:
        """Raise UserError where the sampler's log-probabilities are of another model: no noise that a ratio mends."""
        if numbers.policy is None:
            return
        if (off := float(np.abs(numbers.policy - numbers.sampled).mean())) > WRONG:
            raise UserError(
                f"the sampler says {off:.2g} nats a token else than the policy of what it has drawn, on average, so it "
                "draws from another model.", location="model.path" if self.rollout.server is None else "rollout.server",
                hint="Check which model, adapter and temperature the server has." if self.rollout.server else
                "This family cannot draw here: draw by a server (rollout.server).")  # fmt: skip

    def _read_by(self, model: Policy, groups: Sequence[TokenGroup]) -> np.ndarray:
        return read_by(model, groups, self.packing, self.oom, self.dist)

    def _groups(self, number: int, tasks: Sequence[Task], numbers: Numbers) -> list[TokenGroup]:
        """The groups to learn from, with every column that the objective reads."""
        objective, count = self.objective, self.rollout.responses
        groups = plain_groups(tasks, numbers, count)
        columns = {"reference": numbers.reference}
        if isinstance(objective, RolloutFormula):
            if numbers.policy is not None:
                columns["sampled"] = numbers.policy
            advantages = advantages_of(objective, numbers, count, at_start=numbers.weights[:32].tobytes() == self.start)
            columns |= {"advantage": advantages.advantage.float().numpy(), "value": numbers.value}
            columns["returns"] = None if advantages.returns is None else advantages.returns.float().numpy()
        else:
            votes = [None] * len(groups) if numbers.preferred is None else numbers.preferred.reshape(-1, count, count)
            groups = [
                labeled(group, objective, self.rollout.labels or "soft", (self.seed, number, i), of_judge)
                for i, (group, of_judge) in enumerate(zip(groups, votes, strict=True))
            ]
        for name, members in columns.items():
            if members is not None:
                by_task = numbers.by_task(members, count)
                groups = [group.with_column(name, values) for group, values in zip(groups, by_task, strict=True)]
        return groups


def weights_now(models: Models) -> bytes:
    """(32,) a digest of the weights that the policy and the value model have."""
    digest = hashlib.sha256()
    for model in (models.policy, models.value):
        if model is not None:
            digest.update(model.weights.sampled().view(torch.uint8).numpy().tobytes())
    return digest.digest()

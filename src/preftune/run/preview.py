"""What a run would do, worked out from its rows and the shapes of its model; no weights are loaded.

Held by tests/run/test_preview.py and tests/cli/test_check.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from preftune.config.resolve import resolve, with_rounding
from preftune.config.run import Run, reward_tables, scoring_tables
from preftune.model.budget import LARGEST, attention_crossover
from preftune.model.load import load_config
from preftune.model.memory import Expected, expected
from preftune.model.probe import try_longest
from preftune.model.shapes import meta_module
from preftune.model.weights import train_only
from preftune.objective import of_scores
from preftune.pack.plan import Packing, Plan, updates_before
from preftune.pack.trie import distinct_tokens
from preftune.rollout.config import Rollout
from preftune.rollout.functions import Function
from preftune.rollout.judges import judge_of
from preftune.rollout.scorers import SummedScorer, scorer_of
from preftune.rows.split import Rows
from preftune.run.dataset import Dataset, tokenize_rows
from preftune.run.fits import learned_by, needs_of
from preftune.run.match_rows import Notes, match_rows
from preftune.run.models import check_vocabulary, device_of, refuse_untrainable, with_precision
from preftune.run.online import plan_tasks
from preftune.run.plan_steps import plan_steps, refuse_idle_keys
from preftune.run.tasks import TaskSet, tasks_from

COUNTED_STEPS = 20  # steps whose packs are counted to the token; the others are taken to be alike


@dataclass(frozen=True)
class Preview:
    """tokens, naive: of an average step, with sharing and with one pass a response."""

    run: Run
    dataset: Dataset
    notes: Notes
    plan: Plan
    parameters: int
    memory: Expected
    tokens: float
    naive: float


def preview(run: Run, rows: Rows) -> Preview:
    """Tokenize and plan as `train` would. Raises UserError."""
    run = resolve(run)
    refuse_untrainable(run)
    device = device_of(run)
    run, dataset, notes = match_rows(run := with_rounding(with_precision(run, device)), tokenize_rows(run, rows))
    module = meta_module(dataset.config)
    vocab = module.get_input_embeddings().get_parameter("weight").shape[0]
    check_vocabulary(vocab, [*dataset.train, *dataset.held_out])
    try_longest(module, [*dataset.train, *dataset.held_out])
    if run.model.trainable is not None and not of_scores(run.objective):  # of which the model here has no score
        notes["trainable"] = train_only(module, run.model.trainable)
    shapes, setup = needs_of(run, dataset.config, device.type)
    budget = run.batch.tokens or LARGEST[device.type]
    plan = plan_steps(run, dataset.train, Packing(budget, attention_crossover(dataset.config)))
    refuse_idle_keys(run, len(plan.steps))
    counts = []
    for step in plan.steps[:COUNTED_STEPS]:
        groups = [[dataset.train[i] for i in pack] for pack in step.packs]
        packs = [[np.concatenate(turn) for g in pack for turns in g.turns for turn in turns] for pack in groups]
        counts.append((sum(map(distinct_tokens, packs)), sum(g.tokens_naive for pack in groups for g in pack)))
    tokens, naive = np.mean(counts, axis=0)
    memory = expected(shapes, setup, budget)
    return Preview(run, dataset, notes, plan, shapes.parameters, memory, float(tokens), float(naive))


class TaskPreview(NamedTuple):
    """phases: how often the run draws; steps: its updates."""

    tasks: TaskSet
    rollout: Rollout
    phases: int
    steps: int


def preview_tasks(run: Run, rollout: Rollout, rows: Rows, functions: Sequence[Function | None]) -> TaskPreview:
    """Make tasks of the rows, read what scores them, and plan, as `train` would. functions: of the tables that score.
    Raises UserError."""
    refuse_untrainable(run)
    tasks = tasks_from(run, rollout, rows)
    if run.adapter is not None:
        learned_by(run, meta_module(tasks.dataset.config))  # refuses what the model does not have
    for reward in reward_tables(run):
        if reward.model and not reward.judge:
            load_config(reward.model, None, "reward.model")
    _scorer(run, functions).refuse_tasks([*tasks.train, *tasks.held_out])
    plan = plan_tasks(run, rollout, len(tasks.train))
    before = updates_before(plan, rollout.epochs, min(run.batch.rows, rollout.phase_tasks), run.optim.steps)
    refuse_idle_keys(run, before[-1])
    return TaskPreview(tasks, rollout, sum(first < before[-1] for first in before), before[-1])


def _scorer(run: Run, functions: Sequence[Function | None]) -> SummedScorer:
    """What scores a response, without models. Raises UserError where a judge or a pattern cannot be used."""
    for reward in reward_tables(run):
        if reward.judge and "://" not in reward.judge:
            judge_of(reward)
    most = run.rollout.max_tokens if run.rollout else 0
    return scorer_of(scoring_tables(run), lambda _: SummedScorer((), {}), functions, most)

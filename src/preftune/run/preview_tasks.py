"""What a run that draws would do, worked out from its rows; no weights are loaded. Held by tests/cli/test_verbs.py."""

from __future__ import annotations

from typing import NamedTuple

from preftune.config.drawing import reward_tables
from preftune.config.run import Run
from preftune.model.load import load_config
from preftune.model.shapes import meta_module
from preftune.rollout.config import Rollout
from preftune.rollout.judges import judge_of
from preftune.rollout.phase import updates_before
from preftune.rollout.scorers import SummedScorer, scorer_of
from preftune.rows.split import Rows
from preftune.run.fits import learned_by
from preftune.run.models import refuse_untrainable
from preftune.run.online import plan_tasks
from preftune.run.tasks import TaskSet, tasks_from
from preftune.training.schedule import refuse_long_warmup


class TaskPreview(NamedTuple):
    """phases: how often the run draws; steps: its updates."""

    tasks: TaskSet
    rollout: Rollout
    phases: int
    steps: int


def preview_tasks(run: Run, rollout: Rollout, rows: Rows) -> TaskPreview:
    """Make tasks of the rows, read what scores them, and plan, as `train` would. Raises UserError."""
    refuse_untrainable(run)
    tasks = tasks_from(run, rollout, rows)
    if run.adapter is not None:
        learned_by(run, meta_module(tasks.dataset.config))  # refuses what the model does not have
    for reward in reward_tables(run):
        if reward.model and not reward.judge:
            load_config(reward.model, None, "reward.model")
    _scorer(run).refuse_tasks([*tasks.train, *tasks.held_out])
    plan = plan_tasks(run, rollout, len(tasks.train))
    before = updates_before(plan, rollout.epochs, min(run.batch.rows, rollout.phase_tasks), run.optim.steps)
    refuse_long_warmup(run.optim, before[-1])
    return TaskPreview(tasks, rollout, sum(first < before[-1] for first in before), before[-1])


def _scorer(run: Run) -> SummedScorer:
    """What scores a response without a model. Raises UserError where a function or a pattern cannot be used."""
    tables = reward_tables(run)
    for reward in tables:
        if reward.judge and "://" not in reward.judge:
            judge_of(reward)
    without_model = [reward for reward in tables if reward.function or reward.verify]
    return scorer_of(without_model, lambda reward: _scorer(run))

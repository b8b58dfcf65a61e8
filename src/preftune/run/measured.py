"""What a run that draws measures: its held-out prompts, and what it writes to some of them for the page."""

from __future__ import annotations

import numpy as np

from preftune.config.run import Run
from preftune.errors import UserError
from preftune.model.policy import Policy
from preftune.rollout.config import MEASURED
from preftune.rollout.embedded import Embedded
from preftune.rollout.evaluate import DRAWN, HeldOutTasks, chosen_tasks
from preftune.rollout.phase import Online
from preftune.rollout.samples import Samples, chosen_prompts
from preftune.rollout.tasks import Task
from preftune.run.match_rows import Notes
from preftune.run.tasks import TaskSet
from preftune.tokens.groups import TokenGroup


def held_out_tasks(run: Run, tasks: TaskSet, source: Online, sampler: Embedded, notes: Notes) -> HeldOutTasks | None:
    """The held-out prompts that are measured, if there are any, and a score to measure. sampler: draws in this process.

    Raises UserError where a ceiling is asked for that cannot be told.
    """
    ceiling = DRAWN if source.rollout.ceiling is None else source.rollout.ceiling
    whole = not source.models.policy.weights.in_step  # else the server draws to held-out prompts, too
    needed = {"rank has the whole reference": whole, "prompts are held out": tasks.held_out,
              "reference stays as it is": source.anchor is not None}  # fmt: skip
    lacking = [text for text, there in needed.items() if not there]
    if source.rollout.ceiling and lacking:
        raise UserError(f"no {lacking[0]}, so no ceiling is told.", location="rollout.ceiling", hint="Remove the key.")
    if tasks.held_out and source.judge is None:  # a judge compares two responses, and gives no score to follow
        chosen = chosen_tasks(tasks.held_out, source.rollout.held_out or MEASURED)
        if len(chosen) < len(tasks.held_out):
            text = f"of {len(tasks.held_out)} held-out prompts, {len(chosen)} are drawn to (rollout.held_out)"
            notes["measured"] = (text, {})
        return HeldOutTasks(
            chosen, source.rollout.responses, run.seed, sampler=sampler if whole else source.sampler,
            anchor=source.anchor, scorer=source.scorer, tokenizer=source.tokenizer, packing=source.packing,
            record=source.record, ceiling=ceiling if whole else 0, context=source.context,
            ranks=None if whole else 1, oom=source.oom,
        )  # fmt: skip
    return None


def samples_of_tasks(
    run: Run, tasks: TaskSet, sampler: Embedded, source: Online, *, starts_at_reference: bool
) -> Samples | None:
    """The held-out prompts to which texts are drawn for the page; None where no rank has the whole model."""
    prompts = chosen_prompts([group_of(task) for task in tasks.held_out], run.evaluate.samples)
    if not prompts or source.models.policy.weights.in_step:
        return None

    def start() -> Policy | None:
        return source.anchor if starts_at_reference and source.anchor else None

    def spell(ids: np.ndarray) -> str:
        return str(tasks.dataset.tokenizer.decode(ids, skip_special_tokens=True))

    shown = [{"prompt": spell(group.prompt)} for group in prompts]
    drawn_to = [Task(group.prompt, "", None, group.place, group.id) for group in prompts]
    return Samples(drawn_to, shown, sampler, start, spell, source.packing, run.seed, source.record, source.dist)


def group_of(task: Task) -> TokenGroup:
    """The task as a group without responses."""
    return TokenGroup(prompt=task.ids, responses=(), kind="task", place=task.place, id=task.id, ranks=())

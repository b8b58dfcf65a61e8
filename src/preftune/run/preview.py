"""What a run would do, worked out from its rows and the shapes of its model; no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from preftune.config.resolve import resolve, uses_reference
from preftune.config.run import Run
from preftune.model import load, scalar
from preftune.model.budget import LARGEST, Expected, attention_crossover, expected
from preftune.model.probe import try_longest
from preftune.objective import PPO, of_scores
from preftune.pack.plan import Packing, Plan
from preftune.pack.trie import distinct_tokens
from preftune.reference.config import Moving
from preftune.rollout.config import Rollout
from preftune.rollout.tasks import Task
from preftune.rows.split import Rows
from preftune.run.dataset import Dataset, tokenize_rows
from preftune.run.match_rows import Notes, match_rows
from preftune.run.models import check_vocabulary, device_of
from preftune.run.plan_steps import plan_steps
from preftune.run.tasks import group_of, load_tasks
from preftune.tokens.groups import TokenGroup

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
    rollout = run.rollout
    if rollout is None:
        run, dataset, notes = match_rows(run, tokenize_rows(run, rows))
        groups = dataset.train
    else:
        tasks, notes = load_tasks(run, rollout, rows), Notes()
        run = _as_rows(run, rollout)
        dataset = msgspec.structs.replace(tasks.dataset, train=[group_of(task) for task in tasks.train])
        groups = [_imagined(task, rollout) for task in tasks.train]
    if of_scores(run.objective):
        scalar.refuse_without_score(dataset.config, "model.path")
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(dataset.config, trust_remote_code=False)
    vocab = module.get_input_embeddings().get_parameter("weight").shape[0]
    check_vocabulary(vocab, [*groups, *dataset.held_out])
    try_longest(module, [*groups, *dataset.held_out])
    parameters = sum(parameter.numel() for parameter in module.parameters())
    size = torch.finfo(load.DTYPES[run.model.weights]).bits // 8
    budget = run.batch.tokens or LARGEST[device_of(run).type]
    plan = plan_steps(run, groups, Packing(budget, attention_crossover(dataset.config)))
    counts = []
    for step in plan.steps[:COUNTED_STEPS]:
        packs = [[np.concatenate([groups[i].prompt, r]) for i in pack for r in groups[i].responses]
                 for pack in step.packs]  # fmt: skip
        counts.append((sum(map(distinct_tokens, packs)), sum(len(s) for pack in packs for s in pack)))
    tokens, naive = np.mean(counts, axis=0)
    checkpointing = run.model.checkpointing
    memory = expected(dataset.config, parameters, tokens=budget, weight_bytes=size, checkpointing=checkpointing)
    models = int(isinstance(run.reference, Moving) or (run.rollout is not None and uses_reference(run.objective)))
    memory = replace(memory, weights=memory.weights + models * parameters * size)
    if isinstance(run.objective, PPO):  # a value model is trained as the policy is
        weights, gradients, moments = memory.weights + parameters * size, 2 * memory.gradients, 2 * memory.moments
        memory = Expected(weights, gradients, moments, memory.activations)
    return Preview(run, dataset, notes, plan, parameters, memory, float(tokens), float(naive))


def _as_rows(run: Run, rollout: Rollout) -> Run:
    """The run whose steps are planned over rows as many as its tasks."""
    batch = msgspec.structs.replace(run.batch, rows=min(run.batch.rows, rollout.phase_tasks))
    epochs = None if run.optim.steps else (run.optim.epochs or 1) * rollout.epochs
    return msgspec.structs.replace(run, batch=batch, optim=msgspec.structs.replace(run.optim, epochs=epochs))


def _imagined(task: Task, rollout: Rollout) -> TokenGroup:
    """The task with responses as long as they may get, of which no two begin alike: the most that a step may take."""
    tokens = np.resize(task.ids, rollout.max_tokens)
    responses = tuple(np.roll(tokens, k).astype(np.int32) for k in range(rollout.responses))
    return TokenGroup(prompt=task.ids, responses=responses, kind="ranking", place=task.place,
                      ranks=(1,) * rollout.responses)  # fmt: skip

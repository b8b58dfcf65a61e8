"""What a run would do, worked out from its rows and the shapes of its model; no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from preftune.config.resolve import resolve
from preftune.config.run import Run
from preftune.model.budget import LARGEST, attention_crossover
from preftune.model.memory import Expected, expected
from preftune.model.probe import try_longest
from preftune.model.shapes import meta_module
from preftune.model.weights import train_only
from preftune.objective import of_scores
from preftune.pack.plan import Packing, Plan
from preftune.pack.trie import distinct_tokens
from preftune.rows.split import Rows
from preftune.run.dataset import Dataset, tokenize_rows
from preftune.run.fits import needs_of
from preftune.run.match_rows import Notes, match_rows
from preftune.run.models import check_vocabulary, device_of, refuse_untrainable
from preftune.run.plan_steps import plan_steps
from preftune.run.precision import with_precision
from preftune.training.schedule import refuse_long_warmup

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
    run, dataset, notes = match_rows(run := with_precision(run, device), tokenize_rows(run, rows))
    module = meta_module(dataset.config)
    vocab = module.get_input_embeddings().get_parameter("weight").shape[0]
    check_vocabulary(vocab, [*dataset.train, *dataset.held_out])
    try_longest(module, [*dataset.train, *dataset.held_out])
    if run.model.trainable is not None and not of_scores(run.objective):  # of which the model here has no score
        notes["trainable"] = train_only(module, run.model.trainable)
    shapes, setup = needs_of(run, dataset.config, device.type)
    budget = run.batch.tokens or LARGEST[device.type]
    plan = plan_steps(run, dataset.train, Packing(budget, attention_crossover(dataset.config)))
    refuse_long_warmup(run.optim, len(plan.steps))
    counts = []
    for step in plan.steps[:COUNTED_STEPS]:
        groups = [[dataset.train[i] for i in pack] for pack in step.packs]
        packs = [[np.concatenate(turn) for g in pack for turns in g.turns for turn in turns] for pack in groups]
        counts.append((sum(map(distinct_tokens, packs)), sum(g.tokens_naive for pack in groups for g in pack)))
    tokens, naive = np.mean(counts, axis=0)
    memory = expected(shapes, setup, budget)
    return Preview(run, dataset, notes, plan, shapes.parameters, memory, float(tokens), float(naive))

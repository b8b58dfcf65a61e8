"""What a run would do, worked out from its rows and the shapes of its model; no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from preftune.config.resolve import resolve
from preftune.config.run import Run
from preftune.model import load
from preftune.model.budget import LARGEST, Expected, attention_crossover, expected
from preftune.pack.plan import Packing, Plan
from preftune.pack.trie import distinct_tokens
from preftune.reference.config import Frozen
from preftune.run.dataset import in_tokens
from preftune.run.match_rows import Notes, fit
from preftune.run.prepare import device_of, in_vocabulary, plan_of
from preftune.run.prepare_rows import Prepared, Rows

SHOWN_STEPS = 20  # steps whose packs are counted to the token; the rest is taken to be alike


@dataclass(frozen=True)
class Preview:
    """tokens and naive: of one average step, with sharing and with one pass a response."""

    run: Run
    prepared: Prepared
    notes: Notes
    tokenizer: PreTrainedTokenizerBase
    plan: Plan
    parameters: int
    memory: Expected
    tokens: float
    naive: float


def preview(run: Run, rows: Rows) -> Preview:
    """Tokenize and plan as `train` would. Raises UserError."""
    import numpy as np
    from transformers import AutoModelForCausalLM

    run = resolve(run)
    material = in_tokens(run, rows)
    config = material.config
    run, prepared, notes = fit(run, material.prepared)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    in_vocabulary(module.get_input_embeddings().get_parameter("weight").shape[0], prepared)
    parameters = sum(p.numel() for p in module.parameters())
    size = torch.finfo(load.DTYPES[run.model.weights]).bits // 8
    budget = run.batch.tokens or LARGEST[device_of(run).type]
    plan = plan_of(run, prepared.train, Packing(budget, attention_crossover(config)))
    counts = []
    for step in plan.steps[:SHOWN_STEPS]:
        packs = [
            [np.concatenate([g.prompt, r]) for g in map(prepared.train.__getitem__, p) for r in g.responses]
            for p in step.packs
        ]
        counts.append((sum(map(distinct_tokens, packs)), sum(len(s) for pack in packs for s in pack)))
    tokens, naive = np.mean(counts, axis=0)
    memory = expected(config, parameters, tokens=budget, weight_bytes=size, checkpointing=run.model.checkpointing)
    if isinstance(run.reference, Frozen):
        memory = Expected(memory.weights + parameters * size, memory.gradients, memory.moments, memory.activations)
    return Preview(run, prepared, notes, material.tokenizer, plan, parameters, memory, float(tokens), float(naive))

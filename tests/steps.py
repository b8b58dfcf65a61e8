"""One step in a test: rows packed by hand, the reference's numbers from a model, and the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from preftune.distributed import SINGLE_PROCESS, Distributed
from preftune.forward.examples import mismatch
from preftune.forward.forward import Models, StepGradient, step_gradient
from preftune.forward.loss import Loss
from preftune.model.policy import Policy
from preftune.objective import Objective
from preftune.pack.batch import collate
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Packing, Step
from preftune.tokens.groups import TokenGroup

LONGEST = 200  # tokens of a mismatched prompt and response


def with_reference(groups: Sequence[TokenGroup], reference: Policy) -> list[TokenGroup]:
    """The groups with the column `reference`, each response scored by itself."""
    filled = []
    for group in groups:
        with torch.no_grad():
            token_logp = reference.token_logp(collate([group])).numpy()
        stops = np.cumsum([len(response) for response in group.responses])[:-1]
        filled.append(group.with_column("reference", tuple(np.split(token_logp, stops))))
    return filled


def one_step(
    policy: Policy,
    reference: Policy,
    objective: Objective,
    groups: Sequence[TokenGroup],
    step: Step,
    packing: Packing | None = None,
    dist: Distributed = SINGLE_PROCESS,
) -> StepGradient:
    """The gradient of a step over these groups, in the policy's parameters."""
    loss, every, packing = Loss(objective, "all"), list(groups), packing or Packing(60)
    if "mismatched" in loss.reads:
        extra = mismatch([groups[i] for i in step.order], LONGEST)
        packed = packing.step(extra, dist.world_size)
        packs = tuple(tuple(len(every) + i for i in pack) for pack in packed.packs)
        step = replace(step, mismatched=replace(packed, packs=packs))
        every += extra
    if "reference" in loss.reads:
        every = with_reference(every, reference)
    return step_gradient(Models(policy), every, step, loss, OomRetry(), dist)


def step_of(packs: Sequence[Sequence[TokenGroup]]) -> tuple[list[TokenGroup], Step]:
    """Packs of rows as one step whose order is theirs."""
    order = iter(range(sum(map(len, packs))))
    return [row for pack in packs for row in pack], Step(tuple(tuple(next(order) for _ in pack) for pack in packs))

"""What a model says by its own forward pass, attention and parts: the yardstick of verify.py, which holds it."""

from __future__ import annotations

import inspect

import numpy as np
import torch
from torch import Tensor

from preftune.model.as_made import as_made
from preftune.model.heads import ScalarHead
from preftune.model.policy import Policy
from preftune.pack.batch import Batch


def plain_logp(policy: Policy, batch: Batch) -> Tensor:
    """(members,): as `Policy.read`, by the model's own forward pass, attention and parts, one turn at a time."""
    module, answer = policy.module, _score if isinstance(policy.head, ScalarHead) else _logp

    def read(batch: Batch) -> Tensor:
        policy.weights.activate()
        ends = isinstance(policy.head, ScalarHead) and policy.head.reads == "ends"
        turns = [turn for g in batch.groups for turns in g.turns for turn in (turns[-1:] if ends else turns)]
        ids = [torch.from_numpy(np.concatenate(turn).astype(np.int64)).to(policy.device) for turn in turns]
        return torch.cat([answer(policy, whole, len(turn.ids)) for whole, turn in zip(ids, turns, strict=True)])

    with as_made(module), torch.no_grad(), policy.autocast():
        return policy.weights.through(read, batch)


def _score(policy: Policy, ids: Tensor, count: int) -> Tensor:
    """(1,) or (tokens of the response,): what a scalar head says of the hidden states that the family's score gets."""
    assert isinstance(policy.head, ScalarHead)
    states: list[Tensor] = []
    hook = policy.module.get_submodule("score").register_forward_pre_hook(lambda _, inputs: states.append(inputs[0][0]))
    try:
        policy.module(input_ids=ids[None], use_cache=False)
    finally:
        hook.remove()
    return policy.head.values(states[0][-1:] if policy.head.reads == "ends" else states[0][-count - 1 : -1])


def _logp(policy: Policy, ids: Tensor, count: int) -> Tensor:
    """(tokens of the response,)."""
    last = count + 1
    fewer = "logits_to_keep" in inspect.signature(policy.module.forward).parameters
    logits = policy.module(input_ids=ids[None], use_cache=False, **({"logits_to_keep": last} if fewer else {})).logits
    logits = logits[0, -last:-1].to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(logits, -1).gather(1, ids[1 - last :, None])[:, 0]

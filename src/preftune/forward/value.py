"""The value model's own gradient: the packs of a step through it and back. Held by tests/laws/test_online.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from preftune import signals
from preftune.distributed import Distributed
from preftune.forward.examples import column_of, response_of_tokens
from preftune.model.policy import Policy
from preftune.objective.responses import Values
from preftune.objective.rollouts import PPO
from preftune.pack.oom import Groups, OomRetry
from preftune.pack.plan import Pack, Step


def value_gradient(
    model: Policy, objective: PPO, groups: Groups, step: Step, oom: OomRetry, dist: Distributed
) -> float:
    """Put the gradient of the step's mean value loss into the model's parameters, on every rank the same; returns the
    loss, a mean over the rows."""

    def forward_and_backward(packs: Sequence[Pack]) -> float:
        model.weights.zero_grad()
        loss = 0.0
        for pack in packs:
            signals.check()
            rows = [groups[i] for i in pack]
            answer = model.read(model.batch(rows))
            leaf = answer.detach().double().cpu().requires_grad_()
            weight = torch.tensor([row.weight / len(row.responses) for row in rows for _ in row.responses])
            values = Values(leaf, column_of(rows, "value"), column_of(rows, "returns"), response_of_tokens(rows),
                            weight.double())  # fmt: skip
            total = (values.weight * objective.value_loss(values)).sum() / step.rows
            (d_value,) = torch.autograd.grad(total, [leaf])
            answer.backward(d_value.to(answer))
            loss += float(total.detach())
        return loss

    with model.cast_once():
        loss = oom.run(groups, step.packs_of_rank(dist.rank), forward_and_backward)
    model.weights.sum_gradients(dist)
    return float(dist.sum(torch.tensor(loss, dtype=torch.float64)))

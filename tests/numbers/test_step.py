"""The whole step against finite differences through a model: what weights are given is the slope of the objective.

Every row of `cases` goes through; so does every objective that is new.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from making import group, tiny
from objective.cases import CASES, Case, values
from steps import one_step

from preftune import objective as o
from preftune.forward.forward import StepGradient
from preftune.model.policy import Policy, wrap
from preftune.objective.responses import Pairs, Responses
from preftune.pack.plan import Step

STEP = 1e-6  # of the parameters, along one random direction
HELD = {"bco", "mpo", "dro", "beta_dpo"}  # each has a number of the step that its formula holds fixed
every = pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])


@pytest.fixture(scope="module")
def models() -> tuple[Policy, Policy]:
    """A policy and a reference."""
    policy, reference = (wrap(tiny("gpt2", n_layer=2, seed=seed, dtype=torch.float64), "auto")[0] for seed in (0, 1))
    return policy, reference


def rows() -> list:
    """Four pairs with scores, votes and unequal weights and lengths; two share their prompt."""
    rng = np.random.default_rng(8)
    prompts = [[3, 4, 5], [3, 4, 6, 7], [9], [9]]
    return [
        group(prompt, rng.integers(3, 60, 2 + n), rng.integers(3, 60, 6 - n), scores=(0.9 - 0.1 * n, 0.1 + 0.1 * n),
              preferred=0.8 if n == 1 else 1.0, weight=1.0 + n / 2)
        for n, prompt in enumerate(prompts)
    ]  # fmt: skip


class World:
    """A step's rows under a policy whose parameters can be moved along one direction."""

    def __init__(self, policy: Policy, reference: Policy, objective: o.Objective) -> None:
        self.models, self.objective, self.rows = (policy, reference), objective, rows()
        draw = torch.Generator().manual_seed(3)
        self.parameters = list(policy.module.parameters())
        self.way = [torch.randn(p.shape, generator=draw, dtype=p.dtype) for p in self.parameters]
        self.mismatched: Responses | None = None  # of the parameters as they are

    def pairs(self, by: float = 0.0, like: Pairs | None = None) -> Pairs:
        """At the parameters moved `by`; what carries no gradient is that of `like`."""
        with torch.no_grad():
            for parameter, way in zip(self.parameters, self.way, strict=True):
                parameter.add_(way, alpha=by)
        examples = self.gradient(((0, 1, 2, 3),)).output.examples
        found, self.mismatched = examples.pairs, self.mismatched or examples.mismatched
        with torch.no_grad():
            for parameter, way in zip(self.parameters, self.way, strict=True):
                parameter.sub_(way, alpha=by)
        if like is None:
            return found
        sides = [replace(a, logp=b.logp) for a, b in ((like.chosen, found.chosen), (like.rejected, found.rejected))]
        return replace(like, chosen=sides[0], rejected=sides[1])

    def gradient(self, packs: tuple[tuple[int, ...], ...]) -> StepGradient:
        """Of the rows as one step of these packs."""
        return one_step(*self.models, self.objective, self.rows, Step(packs))

    def loss(self, pairs: Pairs) -> torch.Tensor:
        """The formula on the pairs, without the engine."""
        value = values(self.objective, pairs, self.mismatched)
        return (value * pairs.weight).sum() / len(self.rows)

    def along(self) -> float:
        """The engine's gradient along the way, from two packs of two rows."""
        self.gradient(((0, 1), (2, 3)))
        both = zip(self.parameters, self.way, strict=True)
        return float(sum((p.grad * way).sum() for p, way in both if p.grad is not None))


def world(case: Case, models: tuple[Policy, Policy]) -> World:
    return World(*models, case.objective)


@every
def test_gradient_is_the_coefficients_times_the_slopes_of_the_scores(case: Case, models: tuple) -> None:
    at = world(case, models)
    pairs, up, down = at.pairs(), at.pairs(STEP), at.pairs(-STEP)
    leaves = [side.logp.clone().requires_grad_() for side in (pairs.chosen, pairs.rejected)]
    sides = [replace(side, logp=leaf) for side, leaf in zip((pairs.chosen, pairs.rejected), leaves, strict=True)]
    value = at.loss(replace(pairs, chosen=sides[0], rejected=sides[1]))
    coefficients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)

    def slope(of: str) -> torch.Tensor:
        return (getattr(up, of).logp - getattr(down, of).logp) / (2 * STEP)

    expected = float((coefficients[0] * slope("chosen") + coefficients[1] * slope("rejected")).sum())
    assert abs(expected) > 1e-6
    assert at.along() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in HELD], ids=lambda c: c.name)
def test_gradient_is_the_slope_of_the_loss(case: Case, models: tuple) -> None:
    at = world(case, models)
    here = at.pairs()
    slope = float(at.loss(at.pairs(STEP, here)) - at.loss(at.pairs(-STEP, here))) / (2 * STEP)
    assert at.along() == pytest.approx(slope, rel=1e-5, abs=1e-8)

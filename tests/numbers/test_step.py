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

from preftune import objective as o
from preftune.forward.forward import passes, score_mismatched
from preftune.forward.loss import Loss, Models, score
from preftune.model.policy import Policy, wrap
from preftune.objective.responses import Pairs
from preftune.pack.batch import collate
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Packing, Step
from preftune.reference.reference import FrozenReference, NoReference, Reference

STEP = 1e-6  # of the parameters, along one random direction
HELD = {"bco", "mpo", "dro", "beta_dpo"}  # each has a number of the step that its formula holds fixed
every = pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])


@pytest.fixture(scope="module")
def models() -> tuple[Policy, FrozenReference]:
    made = [wrap(tiny("gpt2", n_layer=2, seed=seed, dtype=torch.float64), "auto")[0] for seed in (0, 1)]
    return made[0], FrozenReference(made[1])


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

    def __init__(self, policy: Policy, reference: Reference, judge: Loss) -> None:
        self.engine, self.judge, self.rows = Models(policy, reference, judge, Packing(60)), judge, rows()
        draw = torch.Generator().manual_seed(3)
        self.parameters = list(policy.module.parameters())
        self.way = [torch.randn(p.shape, generator=draw, dtype=p.dtype) for p in self.parameters]
        mismatched = score_mismatched(self.engine, self.rows, OomRetry())
        self.mismatched = mismatched and mismatched.scores

    def pairs(self, by: float = 0.0, like: Pairs | None = None) -> Pairs:
        """At the parameters moved `by`; what carries no gradient is that of `like`."""
        with torch.no_grad():
            for parameter, way in zip(self.parameters, self.way, strict=True):
                parameter.add_(way, alpha=by)
            responses = score(self.engine, collate(self.rows)).scores
            for parameter, way in zip(self.parameters, self.way, strict=True):
                parameter.sub_(way, alpha=by)
        pairs = Loss(o.NLL(), "all")(self.rows, responses).examples.pairs
        if like is None:
            return pairs
        sides = [replace(a, logp=b.logp) for a, b in ((like.chosen, pairs.chosen), (like.rejected, pairs.rejected))]
        return replace(like, chosen=sides[0], rejected=sides[1])

    def loss(self, pairs: Pairs) -> torch.Tensor:
        """The formula on the pairs, without the engine."""
        value = values(self.judge.objective, pairs, self.mismatched)
        return (value * pairs.weight).sum() / len(self.rows)

    def along(self) -> float:
        """The engine's gradient along the way, from two packs of two rows."""
        passes(self.engine, self.rows, Step(((0, 1), (2, 3))), OomRetry())
        both = zip(self.parameters, self.way, strict=True)
        return float(sum((p.grad * way).sum() for p, way in both if p.grad is not None))


def world(case: Case, models: tuple[Policy, FrozenReference]) -> World:
    uses = any("reference" in part.reads for _, part in o.parts(case.objective))
    return World(models[0], models[1] if uses else NoReference(), Loss(case.objective, "all", 200))


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

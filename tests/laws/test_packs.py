"""The gradient of a step is a property of its rows: no split into packs changes it, for any objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import group, tiny

from preftune import objective as o
from preftune.model.policy import Policy, wrap
from preftune.objective.aggregate import LD, Decay, Plain, SamPO
from preftune.pack.plan import Packing, Step
from preftune.reference.reference import FrozenReference, NoReference
from preftune.training.passes import Memory, Pass, passes
from preftune.training.step import Engine, Judge

MIXED = o.Sum(parts=(o.DPO(), o.NLL(), o.KTO()), weights=(1.0, 0.2, 0.5))
OBJECTIVES = [
    o.DPO(), o.DPO(flip=0.1), o.IPO(), o.SimPO(), o.ORPO(), o.KTO(), o.BCO(), o.AOT(), o.AOT(paired=False),
    o.BetaDPO(), o.DrDPO(), o.WPO(), o.PlackettLuce(), MIXED,
]  # fmt: skip


def rows(kind: str, count: int = 6) -> list:
    rng = np.random.default_rng(4)
    made = []
    for n in range(count):
        prompt = [3, 4, *rng.integers(3, 60, n % 3 + 1)]
        k = {"pair": 2, "ranking": 4, "rating": 1}[kind]
        sides = [rng.integers(3, 60, rng.integers(1, 7)) for _ in range(k)]
        ranks = {"pair": (1, 2), "ranking": (1, 2, 2, 3), "rating": (1,)}[kind]
        made.append(group(prompt, *sides, kind=kind, ranks=ranks, good=n % 2 == 0, preferred=1.0 if n else 0.7))
    return made


def one_step(policy: Policy, reference: object, judge: Judge, packs: list[list]) -> Pass:
    """Packs of rows as one step whose order is theirs."""
    made = [row for pack in packs for row in pack]
    order = iter(range(len(made)))
    step = Step(tuple(tuple(next(order) for _ in pack) for pack in packs))
    return passes(Engine(policy, reference, judge, Packing(60)), made, step, Memory())


def gradient(policy: Policy, reference: object, judge: Judge, packs: list[list]) -> torch.Tensor:
    one_step(policy, reference, judge, packs)
    return torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.grad is not None])


@pytest.fixture(scope="module")
def models() -> tuple[Policy, FrozenReference]:
    return wrap(tiny(dtype=torch.float64), "auto")[0], FrozenReference(
        wrap(tiny(dtype=torch.float64, seed=1), "auto")[0]
    )


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_any_split_gives_the_same_gradient(models: tuple, objective: o.Objective, data: st.DataObject) -> None:
    policy, reference = models
    kinds = {part.kind for _, part in o.parts(objective)}
    kind = data.draw(st.sampled_from(["pair", *(["ranking"] if kinds <= {"pairs", "rankings"} else []),
                                      *(["rating"] if kinds == {"ratings"} else [])]))  # fmt: skip
    anchor = reference if any(part.reference for _, part in o.parts(objective)) else NoReference()
    judge = Judge(objective, Plain(), "all", 200)
    made = rows(kind)
    whole = gradient(policy, anchor, judge, [made])
    order = data.draw(st.permutations(range(len(made))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(made) - 1), max_size=4)))
    packs = [[made[i] for i in order[a:b]] for a, b in zip([0, *cuts], [*cuts, len(made)], strict=True)]
    split = gradient(policy, anchor, judge, packs)
    assert float(whole.abs().max()) > 0
    assert float((whole - split).abs().max()) <= 1e-12 * max(1.0, float(whole.abs().max()))


@pytest.mark.parametrize("aggregate", [LD(alpha=0.3), SamPO(), Decay(gamma=0.9)], ids=repr)
def test_token_weights_reach_policy_and_reference_alike(models: tuple, aggregate: object) -> None:
    policy, reference = models
    judge = Judge(o.DPO(), Plain(), "all", 200)
    other = replace(judge, aggregate=aggregate)
    made = rows("pair")
    assert not torch.allclose(gradient(policy, reference, judge, [made]), gradient(policy, reference, other, [made]))
    one = one_step(policy, FrozenReference(policy), other, [made]).judgement
    assert float(one.views.scores.log_ratio.abs().max()) < 1e-12
    split = gradient(policy, reference, other, [made[:2], made[2:]])
    assert torch.allclose(gradient(policy, reference, other, [made]), split, atol=1e-12)


def test_a_ranking_is_all_its_pairs_each_with_its_share(models: tuple) -> None:
    """One row of four responses against its pairs one by one: the same gradient, and each response computed once."""
    policy, reference = models
    judge = Judge(o.DPO(), Plain(), "all", 200)
    ranking = rows("ranking", 1)[0]
    places = [(i, j) for i, a in enumerate(ranking.ranks) for j, b in enumerate(ranking.ranks) if a < b]
    apart = [
        group(ranking.prompt, ranking.responses[i], ranking.responses[j], preferred=ranking.preferred)
        for i, j in places
    ]
    together = gradient(policy, reference, judge, [[ranking]])
    one_by_one = gradient(policy, reference, judge, [[pair] for pair in apart])
    assert torch.allclose(together, one_by_one, atol=1e-12)
    assert one_step(policy, reference, judge, [[ranking]]).tokens == one_step(policy, reference, judge, [apart]).tokens


def test_the_drift_is_measured_on_other_prompts_only(models: tuple) -> None:
    from preftune.objective.arrange import mismatch

    made = rows("pair", 5) + rows("pair", 2)
    pairs = {(g.prompt.tobytes(), r.tobytes()) for g in made for r in g.responses}
    found = mismatch(made, 200)
    assert len(found) == 14
    prompts_of = {}
    for prompt, response in pairs:
        prompts_of.setdefault(response, set()).add(prompt)
    assert all(g.prompt.tobytes() not in prompts_of[g.responses[0].tobytes()] for g in found)
    assert mismatch(made[:1], 200) == []
    assert mismatch(made, 3) == []

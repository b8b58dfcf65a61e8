"""The gradient of a step is a property of its rows: no split into packs changes it, for any objective."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import group, tiny
from objective.cases import CASES
from steps import one_step, step_of

from preftune import objective as o
from preftune.errors import UserError
from preftune.forward.examples import mismatch, row_kinds
from preftune.model.policy import Policy, wrap
from preftune.pack.batch import collate
from preftune.tokens.aggregate import LD, Aggregate, Decay, Mean, SamPO, apply_aggregate

MIXED = o.Sum(parts=(o.DPO(), o.NLL(), o.KTO()), weights=(1.0, 0.2, 0.5))
KINDS = ("pair", "ranking", "rating")
LISTED = o.Sum(parts=(o.PlackettLuce(), o.DPO(), o.NLL("token")))
OBJECTIVES = {case.name: case.objective for case in CASES} | {"mixed": MIXED, "listed": LISTED}


def rows(kind: str, count: int = 6) -> list:
    rng = np.random.default_rng(4)
    made = []
    for n in range(count):
        prompt = [3, 4, *rng.integers(3, 60, n % 3 + 1)]
        k = {"pair": 2, "ranking": 4, "rating": 1}[kind]
        sides = [rng.integers(3, 60, rng.integers(1, 7)) for _ in range(k)]
        ranks = {"pair": (1, 2), "ranking": (1, 2, 2, 3), "rating": (1,)}[kind]
        scores = tuple(rng.uniform(size=k).tolist())
        made.append(
            group(prompt, *sides, kind=kind, ranks=ranks, good=n % 2 == 0, preferred=1.0 if n else 0.7, scores=scores)
        )
    return made


def gradient(models: tuple[Policy, Policy], objective: o.Objective, packs: list[list]) -> torch.Tensor:
    policy, reference = models
    one_step(policy, reference, objective, *step_of(packs))
    return torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.grad is not None])


@pytest.fixture(scope="module")
def models() -> tuple[Policy, Policy]:
    """A policy and a reference."""
    made = (tiny(dtype=torch.float64, seed=seed, num_hidden_layers=2) for seed in (0, 1))
    policy, reference = (wrap(model, "auto")[0] for model in made)
    return policy, reference


@pytest.fixture(scope="module")
def in_one_pack(models: tuple) -> Callable[[str, str], torch.Tensor]:
    """The gradient of an objective on rows of a kind that are all in one pack."""
    return cache(lambda name, kind: gradient(models, OBJECTIVES[name], [rows(kind)]))


@pytest.mark.parametrize("name", OBJECTIVES)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_any_split_gives_the_same_gradient(
    models: tuple, in_one_pack: Callable[[str, str], torch.Tensor], name: str, data: st.DataObject
) -> None:
    objective = OBJECTIVES[name]
    fitting = [kind for kind in KINDS if all(kind in row_kinds(part) for _, part in o.parts(objective))]
    kind = data.draw(st.sampled_from(fitting))
    made, whole = rows(kind), in_one_pack(name, kind)
    order = data.draw(st.permutations(range(len(made))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(made) - 1), max_size=4)))
    packs = [[made[i] for i in order[a:b]] for a, b in zip([0, *cuts], [*cuts, len(made)], strict=True)]
    split = gradient(models, objective, packs)
    assert float(whole.abs().max()) > 0
    assert float((whole - split).abs().max()) <= 1e-12 * max(1.0, float(whole.abs().max()))


@pytest.mark.parametrize("aggregate", [Mean(), LD(alpha=0.3), SamPO(), Decay(gamma=0.9)], ids=repr)
def test_token_weights_reach_policy_and_reference_alike(models: tuple, aggregate: Aggregate) -> None:
    policy, _ = models
    made = rows("pair")
    other = apply_aggregate(made, aggregate)
    assert not torch.allclose(gradient(models, o.DPO(), [made]), gradient(models, o.DPO(), [other]))
    output = one_step(policy, policy, o.DPO(), *step_of([other])).output
    assert float(output.examples.responses.log_ratio.abs().max()) < 1e-12
    split = gradient(models, o.DPO(), [other[:2], other[2:]])
    assert torch.allclose(gradient(models, o.DPO(), [other]), split, atol=1e-12)


def with_weights(made: list) -> list:
    """Three rows of four say what their tokens count, some of which count nothing."""
    rng = np.random.default_rng(6)
    weights = [
        tuple((rng.integers(0, 3, len(r)) + (np.arange(len(r)) == 0)).astype(np.float32) for r in g.responses)
        for g in made
    ]
    return [g.with_column("weight", w) if n % 4 else g for n, (g, w) in enumerate(zip(made, weights, strict=True))]


def test_weights_that_rows_give_are_by_hand(models: tuple) -> None:
    """logp and reference are the sums of weight times log-probability of each token, whatever the packs."""
    policy, reference = models
    made = with_weights(rows("pair"))
    by_hand: dict[str, list[float]] = {"logp": [], "ref_logp": [], "mean_logp": []}
    for g in made:
        batch = collate([g])
        token_logp, token_reference = policy.token_logp(batch).detach(), reference.token_logp(batch).detach()
        for k, response in enumerate(g.responses):
            weights = torch.from_numpy(g.column("weight")[k]) if g.column("weight") else torch.ones(len(response))
            first = 0 if k == 0 else len(g.responses[0])
            tokens = slice(first, first + len(response))
            by_hand["logp"].append(float((weights.double() * token_logp[tokens]).sum()))
            by_hand["ref_logp"].append(float((weights.double() * token_reference[tokens]).sum()))
            by_hand["mean_logp"].append(by_hand["logp"][-1] / float(weights.sum()))
    for packs in ([made], [made[:1], made[1:4], made[4:]]):
        responses = one_step(policy, reference, o.DPO(), *step_of(packs)).output.examples.responses
        for name, expected in by_hand.items():
            assert getattr(responses, name).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("objective", [o.DPO(), o.SimPO(), o.WPO(), o.KTO(), o.NLL("token")], ids=repr)
def test_weights_that_rows_give_split_as_they_may(models: tuple, objective: o.Objective) -> None:
    plain, made = rows("pair"), with_weights(rows("pair"))
    whole = gradient(models, objective, [made])
    assert torch.allclose(whole, gradient(models, objective, [made[:2], made[2:3], made[3:]]), atol=1e-12)
    assert not torch.allclose(whole, gradient(models, objective, [plain]))
    ones = [g.with_column("weight", tuple(np.ones(len(r), np.float32) for r in g.responses)) for g in plain]
    assert torch.equal(gradient(models, objective, [ones]), gradient(models, objective, [plain]))


def test_the_incentive_is_the_slope_by_the_weighted_sum(models: tuple) -> None:
    output = one_step(*models, o.DPO(), *step_of([with_weights(rows("pair"))])).output
    pairs = output.examples.pairs
    expected = -0.1 * torch.sigmoid(-0.1 * pairs.margin) * pairs.preferred
    expected += 0.1 * torch.sigmoid(0.1 * pairs.margin) * (1 - pairs.preferred)
    assert torch.allclose(output.d_logp[::2], expected, rtol=1e-9)


def test_a_model_that_draws_at_random_is_noticed(models: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Derivatives of one pass must not be put on the numbers of another."""
    policy, reference = models
    right, calls = Policy.token_logp, []

    def drawing(self: Policy, batch: object) -> torch.Tensor:
        calls.append(batch)
        return right(self, batch) + 0.01 * len(calls)

    monkeypatch.setattr(Policy, "token_logp", drawing)
    one_step(policy, reference, o.SimPO(), *step_of([rows("pair")]))  # one pass: nothing to compare
    with pytest.raises(UserError, match="nats a token off from those of a moment before"):
        one_step(policy, reference, o.AOT(), *step_of([rows("pair")]))


def test_a_ranking_is_all_its_pairs_each_with_its_share(models: tuple) -> None:
    """One row of four responses against its pairs one by one: the same gradient, and each response computed once."""
    ranking = rows("ranking", 1)[0]
    places = [(i, j) for i, a in enumerate(ranking.ranks) for j, b in enumerate(ranking.ranks) if a < b]
    apart = [
        group(ranking.prompt, ranking.responses[i], ranking.responses[j], preferred=ranking.preferred)
        for i, j in places
    ]
    together = gradient(models, o.DPO(), [[ranking]])
    one_by_one = gradient(models, o.DPO(), [[pair] for pair in apart])
    assert torch.allclose(together, one_by_one, atol=1e-12)
    tokens = [one_step(*models, o.DPO(), *step_of([packs])).tokens for packs in ([ranking], apart)]
    assert tokens[0] == tokens[1]


def test_the_drift_is_measured_on_other_prompts_only(models: tuple) -> None:
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

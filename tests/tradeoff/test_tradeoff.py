"""The exact world of `preftune trade-off`: its pairs, its reward models and its bounds against what can be counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from preftune import objective as o
from preftune.objective.responses import Pairs
from preftune.tradeoff.conditions import checked, noisy
from preftune.tradeoff.methods import at_beta, every_offline
from preftune.tradeoff.offline import best_of, examples, judge, learn_offline, reward_model, together
from preftune.tradeoff.results import mean
from preftune.tradeoff.world import COUNT_REWARDS, World, expected, kl, make_world


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(prompts=2, runs=2)


def test_the_optimum_is_on_the_ceiling(world: World) -> None:
    best = world.frontier.at_beta(0.5)
    for logp in (world.logp(world.optimum(0.5)), world.tilted(world.reward, 0.5)):
        assert np.allclose(world.measured(logp).T, [best.kl, best.reward, 0.0], atol=1e-9)
    assert np.allclose(world.measured(world.ref_logp)[[0, 2]], 0, atol=1e-12)
    assert float(world.logp(world.reference).exp().sum(-1).sub(1).abs().max()) < 1e-12


def test_pairs_are_draws_of_the_reference_judged_by_the_reward(world: World) -> None:
    count = 40_000
    pairs = judge(world, count, 0)
    prompt = pairs.group == 1
    share = world.ref_logp[1].exp()
    expected = 2 * share[pairs.first[prompt]] * share[pairs.second[prompt]]
    assert float((pairs.share[prompt] - expected).abs().max()) < 5 * np.sqrt(float(expected.max()) / count)
    assert float(pairs.share[prompt].sum()) == pytest.approx(1 - float((share**2).sum()), abs=0.01)
    assert bool((pairs.first < pairs.second).all()), "a pair stands once, whichever way it was drawn"
    often = pairs.share * count > 400
    margin = world.reward[pairs.group, pairs.first] - world.reward[pairs.group, pairs.second]
    assert float((pairs.vote - margin.sigmoid())[often].abs().max()) < 0.1
    turned = judge(world, count, 0, flipped=0.4)
    assert float((turned.vote - (margin.sigmoid() * 0.2 + 0.4))[often].abs().max()) < 0.1
    both = together(pairs, turned)
    assert float(both.share.sum()) == pytest.approx(float(pairs.share.sum() + turned.share.sum()) / 2)


def test_examples_of_every_kind_have_the_weight_of_the_pairs(world: World) -> None:
    pairs = judge(world, 50, 0)
    total = float(pairs.share.sum())
    for objective in (o.DPO(), o.KTO(), o.PlackettLuce(), o.NLL("sum")):
        _, weight = examples(world, pairs, world.ref_logp, objective)
        assert float(weight.sum()) == pytest.approx(total)
    table, _ = examples(world, pairs, world.ref_logp, o.DPO())
    assert isinstance(table, Pairs)
    assert table.chosen.score is None, "only objectives that cannot do without are given the true scores"
    scored, _ = examples(world, pairs, world.ref_logp, o.REBEL())
    assert isinstance(scored, Pairs)
    assert scored.chosen.score is not None


def test_rankings_of_two_are_pairs_and_runs_are_alone(world: World) -> None:
    pairs = judge(world, 200, 0)
    dpo = learn_offline(world, o.DPO(beta=0.5), pairs, steps=10)
    ranked = learn_offline(world, o.PlackettLuce(beta=0.5), pairs, steps=10)
    assert torch.allclose(dpo, ranked, atol=1e-9)
    coupled = learn_offline(world, o.AOT(beta=0.5), pairs, steps=10)
    alone = learn_offline(world.run(1), o.AOT(beta=0.5), pairs.run(1, world.prompts), steps=10)
    assert torch.equal(coupled[world.prompts :], alone)
    assert float((world.logp(dpo) - world.ref_logp).abs().max()) > 0.1


def test_endless_pairs_lead_dpo_to_the_optimum() -> None:
    world = make_world(prompts=1)
    policy = world.logp(learn_offline(world, o.DPO(beta=0.5), judge(world, 1_000_000, 0), steps=400))
    best = world.logp(world.optimum(0.5))
    assert float(kl(policy, best)) < 0.02


def test_a_linear_reward_model_finds_the_weights_of_the_counts() -> None:
    world = make_world(prompts=2, noise=0.0)
    score = reward_model(world, judge(world, 200_000, 0), linear=True)
    true = world.tree.counts @ torch.tensor(COUNT_REWARDS, dtype=torch.float64)
    off = (score - true) - (score - true).mean()
    assert float(off.abs().max()) < 0.1
    table = reward_model(world, judge(world, 200_000, 0), linear=False)

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(groups,) covariance under the reference."""
        mean_product, *means = (expected(world.ref_logp, values) for values in (a * b, a, b))
        return mean_product - means[0] * means[1]

    correlation = product(table, true) / (product(table, table) * product(true, true)).sqrt()
    assert float(correlation.min()) > 0.95


def test_best_of_two_by_hand(world: World) -> None:
    assert torch.allclose(best_of(world, world.reward, 1), world.ref_logp, atol=1e-9)
    share, reward = world.ref_logp[0].exp(), world.reward[0]
    worse = (reward[None, :] < reward[:, None]).double() @ share  # how much of the reference is below each response
    assert torch.allclose(best_of(world, world.reward, 2)[0].exp(), share**2 + 2 * share * worse, atol=1e-9)


def test_a_reward_model_is_checked_against_the_truth(world: World) -> None:
    right, error = checked(world, world.reward, world.ref_logp)
    assert right.value == 1
    assert error.value < 0.02
    _, steep = checked(world, 4 * world.reward, world.ref_logp)
    assert steep.value > 0.1
    turned, _ = checked(world, -world.reward, world.ref_logp)
    assert turned.value == 0


def test_worlds_for_hard_questions() -> None:
    rare = make_world(prompts=2, rare=True)
    first = rare.tree.token[:, 0] == 1
    shares = [float(rare.logp(logits).exp()[:, first].sum(-1).mean()) for logits in (rare.reference, rare.optimum(0.5))]
    assert shares[0] < 0.01 < 0.1 < shares[1]
    rewards = [float(make_world(weak=weak).measured(make_world(weak=weak).ref_logp)[1, 0]) for weak in (0.0, 0.5, 1.0)]
    assert rewards == sorted(rewards, reverse=True)


def test_wrong_labels_shrink_what_dpo_learns(world: World) -> None:
    slopes = noisy(world, 0.2)
    assert slopes["cDPO"].value < slopes["DPO"].value < 0.7 < slopes["robust DPO"].value


def test_beta_reaches_each_objective_in_its_own_unit() -> None:
    assert at_beta(o.IPO(), 0.5) == o.IPO(tau=0.25)
    assert at_beta(o.SimPO(), 0.5) == o.SimPO(beta=2.0, gamma=1.0)
    assert at_beta(o.RobustDPO(), 0.5) == o.RobustDPO(beta=0.5)
    assert at_beta(o.LengthNormalizedDPO(), 0.5) == o.LengthNormalizedDPO()
    names = {method.name for method in every_offline()}
    assert names == {name for name, table in o.BY_NAME.items() if table.kind != "rollouts"} - {"qrpo", "reward"}


def test_a_mean_has_the_interval_of_student() -> None:
    assert mean([1.0, 2.0, 3.0, 4.0, 5.0]).half == pytest.approx(2.776 * np.sqrt(2.5 / 5), rel=1e-2)
    assert mean([2.0, 2.0]).text() == "2.00"

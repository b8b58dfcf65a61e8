"""The world whose every response is listed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from preftune.demo.enumerated import Enumerated, enumerated, expected, kl
from preftune.frontier.measure import Frontier
from preftune.objective import DPO
from preftune.objective.responses import Pairs, Responses


def logits(world: Enumerated, groups: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(groups, len(world.below), world.symbols + 1))


@pytest.mark.parametrize(("symbols", "longest"), [(1, 1), (2, 3), (4, 6)])
def test_the_responses_are_all_and_differ(symbols: int, longest: int) -> None:
    world = enumerated(symbols, longest)
    texts = {tuple(row[there]) for row, there in zip(world.token, world.there, strict=True)}
    assert len(texts) == len(world.token) == sum(symbols**k for k in range(longest + 1))
    ended = [text for text in texts if text[-1] == symbols]
    assert all(symbols not in text[:-1] and len(text) <= longest for text in ended)
    assert all(len(text) == longest for text in texts - set(ended))


def test_the_default_is_the_world_of_5461() -> None:
    world = enumerated()
    assert len(world.token) == 5461
    assert len(world.below) == 1365


def test_probabilities_sum_to_1_and_are_products_of_steps() -> None:
    world = enumerated(3, 4)
    table = logits(world)
    logp = world.logp(table)
    assert np.exp(logp).sum(-1) == pytest.approx(np.ones(2), abs=1e-12)
    step = np.exp(table) / np.exp(table).sum(-1, keepdims=True)
    row = [tuple(t[m]) for t, m in zip(world.token, world.there, strict=True)].index((2, 0, 3))
    second = world.below[0][2]
    third = world.below[second][0]
    assert np.exp(logp[:, row]) == pytest.approx(step[:, 0, 2] * step[:, second, 0] * step[:, third, 3], rel=1e-12)


def test_counts_are_the_tokens() -> None:
    world = enumerated(3, 4)
    assert (world.counts.sum(-1) == world.tokens).all()
    assert (
        world.counts[:, 3] == np.array([t[m][-1] == 3 for t, m in zip(world.token, world.there, strict=True)])
    ).all()


@pytest.mark.parametrize("beta", [0.3, 1.0, 5.0])
def test_the_optimum_found_token_by_token_is_the_tilted_reference(beta: float) -> None:
    world = enumerated(3, 5)
    table = logits(world)
    ref_logp = world.logp(table)
    reward = np.random.default_rng(1).normal(size=ref_logp.shape)
    direct = ref_logp + reward / beta
    direct -= np.logaddexp.reduce(direct, -1, keepdims=True)
    assert world.logp(world.tilted(table, reward, beta)) == pytest.approx(direct, abs=1e-10)
    shared = world.tilted(table, reward[0], beta)
    assert world.logp(shared)[0] == pytest.approx(direct[0], abs=1e-10)


def test_the_optimum_is_best_and_lies_on_the_ceiling() -> None:
    world, beta = enumerated(2, 3), 0.5
    table = logits(world, 1)
    ref_logp = world.logp(table)
    reward = world.counts @ np.array([1.0, -1.0, 0.2])
    best = world.logp(world.tilted(table, reward, beta))

    def gained(logp: np.ndarray) -> float:
        return float((expected(logp, reward) - beta * kl(logp, ref_logp))[0])

    rng = np.random.default_rng(2)
    assert all(gained(best) > gained(world.logp(table + rng.normal(size=table.shape))) for _ in range(20))
    point = Frontier.exact(reward, ref_logp).at_beta(beta)
    assert (point.kl, point.reward) == pytest.approx((kl(best, ref_logp)[0], expected(best, reward)[0]), abs=1e-12)


def test_dpo_on_every_pair_arrives_at_the_optimum() -> None:
    world, beta = enumerated(2, 3), 0.7
    table = logits(world, 1, seed=3)
    reward = world.counts @ np.array([0.8, -0.6, 0.1])
    aim = torch.from_numpy(world.logp(world.tilted(table, reward, beta))[0])
    anchor = torch.from_numpy(world.logp(table)[0])
    first, second = torch.triu_indices(len(anchor), len(anchor), 1)
    prefers = torch.sigmoid(torch.from_numpy(reward)[first] - torch.from_numpy(reward)[second])
    policy = torch.from_numpy(table[0].copy()).requires_grad_()
    there = torch.from_numpy(world.there)

    def logp() -> torch.Tensor:
        steps = policy.log_softmax(-1)[torch.from_numpy(world.prefix), torch.from_numpy(world.token)]
        return torch.where(there, steps, 0.0).sum(-1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        scores = Responses(logp(), torch.from_numpy(world.tokens), anchor)
        loss = DPO(beta=beta)(Pairs(scores[first], scores[second], torch.ones_like(prefers), prefers)).mean()
        loss.backward()
        return loss

    optimizer = torch.optim.LBFGS([policy], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")  # fmt: skip
    optimizer.step(closure)
    assert float((aim.exp() * (aim - logp().detach())).sum()) < 1e-10

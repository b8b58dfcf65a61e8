"""The world whose responses can all be listed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from preftune.demo.enumerated import Enumerated, enumerated, expected, kl
from preftune.frontier.measure import Frontier
from preftune.objective import DPO
from preftune.objective.base import loss_of
from preftune.objective.responses import Pairs, Responses


def logits(world: Enumerated, groups: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(groups, len(world.below), world.symbols + 1))


@pytest.mark.parametrize(("symbols", "longest", "count"), [(1, 1, 2), (2, 3, 15), (4, 6, 5461)])
def test_the_responses_are_all_and_differ(symbols: int, longest: int, count: int) -> None:
    world = enumerated(symbols, longest)
    texts = responses(world)
    assert len(set(texts)) == len(texts) == count
    ended = {text for text in texts if text[-1] == symbols}
    assert all(symbols not in text[:-1] and len(text) <= longest for text in ended)
    assert all(len(text) == longest for text in set(texts) - ended)
    assert (world.counts == [np.bincount(text, minlength=symbols + 1) for text in texts]).all()
    assert (world.tokens == [len(text) for text in texts]).all()


def responses(world: Enumerated) -> list[tuple[int, ...]]:
    return [tuple(token[mask].tolist()) for token, mask in zip(world.token, world.mask, strict=True)]


def test_probabilities_sum_to_1_and_are_products_of_steps() -> None:
    world = enumerated(3, 4)
    table = logits(world)
    logp = world.logp(table)
    assert np.exp(logp).sum(-1) == pytest.approx(np.ones(2), abs=1e-12)
    step = np.exp(table) / np.exp(table).sum(-1, keepdims=True)
    second = world.below[0][2]
    third = world.below[second][0]
    product = step[:, 0, 2] * step[:, second, 0] * step[:, third, 3]
    assert np.exp(logp[:, responses(world).index((2, 0, 3))]) == pytest.approx(product, rel=1e-12)


@pytest.mark.parametrize("beta", [0.3, 1.0, 5.0])
def test_the_optimum_computed_token_by_token_is_the_tilted_reference(beta: float) -> None:
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
    optimum = torch.from_numpy(world.logp(world.tilted(table, reward, beta))[0])
    anchor = torch.from_numpy(world.logp(table)[0])
    first, second = torch.triu_indices(len(anchor), len(anchor), 1)
    prefers = torch.sigmoid(torch.from_numpy(reward)[first] - torch.from_numpy(reward)[second])
    policy = torch.from_numpy(table[0].copy()).requires_grad_()
    prefix, token, mask, tokens = map(torch.from_numpy, (world.prefix, world.token, world.mask, world.tokens))

    def logp() -> torch.Tensor:
        return torch.where(mask, policy.log_softmax(-1)[prefix, token], 0.0).sum(-1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        table = Responses(logp(), tokens, anchor)
        pairs = Pairs(table[first], table[second], torch.ones_like(prefers), prefers)
        loss = loss_of(DPO(beta=beta), pairs).mean()
        loss.backward()
        return loss

    optimizer = torch.optim.LBFGS([policy], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")  # fmt: skip
    optimizer.step(closure)
    assert float((optimum.exp() * (optimum - logp().detach())).sum()) < 1e-10

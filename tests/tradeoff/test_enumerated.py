"""The world whose responses can all be listed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from preftune.frontier.measure import Frontier
from preftune.objective import DPO
from preftune.objective.base import loss_of
from preftune.objective.responses import Pairs, Responses
from preftune.tradeoff.world import Enumerated, enumerated, expected, kl


def logits(world: Enumerated, groups: int = 2, seed: int = 0) -> Tensor:
    return normal(groups, len(world.below), world.symbols + 1, seed=seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize(("symbols", "longest", "count"), [(1, 1, 2), (2, 3, 15), (4, 6, 5461)])
def test_the_responses_are_all_and_differ(symbols: int, longest: int, count: int) -> None:
    world = enumerated(symbols, longest)
    texts = responses(world)
    assert len(set(texts)) == len(texts) == count
    ended = {text for text in texts if text[-1] == symbols}
    assert all(symbols not in text[:-1] and len(text) <= longest for text in ended)
    assert all(len(text) == longest for text in set(texts) - ended)
    assert world.counts.tolist() == [np.bincount(text, minlength=symbols + 1).tolist() for text in texts]
    assert world.tokens.tolist() == [len(text) for text in texts]
    assert world.last[1].tolist() == [text[-1] for text in texts]


def responses(world: Enumerated) -> list[tuple[int, ...]]:
    return [tuple(token[mask].tolist()) for token, mask in zip(world.token, world.mask, strict=True)]


def test_probabilities_sum_to_1_and_are_products_of_steps() -> None:
    world = enumerated(3, 4)
    table = logits(world)
    logp = world.logp(table)
    assert logp.exp().sum(-1).tolist() == pytest.approx([1, 1], abs=1e-12)
    step = table.softmax(-1)
    second = world.below[0][2]
    third = world.below[second][0]
    product = step[:, 0, 2] * step[:, second, 0] * step[:, third, 3]
    assert torch.allclose(logp[:, responses(world).index((2, 0, 3))].exp(), product, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.3, 1.0, 5.0])
def test_the_optimum_computed_token_by_token_is_the_tilted_reference(beta: float) -> None:
    world = enumerated(3, 5)
    table = logits(world)
    ref_logp = world.logp(table)
    reward = normal(*ref_logp.shape, seed=1)
    direct = (ref_logp + reward / beta).log_softmax(-1)
    assert torch.allclose(world.logp(world.tilted(table, reward, beta)), direct, atol=1e-10)
    shared = world.tilted(table, reward[0], beta)
    assert torch.allclose(world.logp(shared)[0], direct[0], atol=1e-10)


def test_the_optimum_is_best_and_lies_on_the_ceiling() -> None:
    world, beta = enumerated(2, 3), 0.5
    table = logits(world, 1)
    ref_logp = world.logp(table)
    reward = world.counts @ torch.tensor([1.0, -1.0, 0.2], dtype=torch.float64)
    best = world.logp(world.tilted(table, reward, beta))

    def gained(logp: Tensor) -> float:
        return float((expected(logp, reward) - beta * kl(logp, ref_logp))[0])

    assert all(gained(best) > gained(world.logp(table + normal(*table.shape, seed=seed))) for seed in range(20))
    point = Frontier.exact(reward.numpy(), ref_logp.numpy()).at_beta(beta)
    of_best = (float(kl(best, ref_logp)), float(expected(best, reward)))
    assert (point.kl, point.reward) == pytest.approx(of_best, abs=1e-12)


def test_dpo_on_every_pair_arrives_at_the_optimum() -> None:
    world, beta = enumerated(2, 3), 0.7
    table = logits(world, 1, seed=3)
    reward = world.counts @ torch.tensor([0.8, -0.6, 0.1], dtype=torch.float64)
    optimum, anchor = world.logp(world.tilted(table, reward, beta))[0], world.logp(table)[0]
    first, second = torch.triu_indices(len(anchor), len(anchor), 1)
    prefers = torch.sigmoid(reward[first] - reward[second])
    policy = table.clone().requires_grad_()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        table = Responses(world.logp(policy)[0], world.tokens, anchor)
        pairs = Pairs(table[first], table[second], torch.ones_like(prefers), prefers)
        loss = loss_of(DPO(beta=beta), pairs).mean()
        loss.backward()
        return loss

    optimizer = torch.optim.LBFGS([policy], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")  # fmt: skip
    optimizer.step(closure)
    assert float(kl(optimum, world.logp(policy.detach())[0])) < 1e-10

"""The ceiling of reward at a KL: its slope, its ends, and estimates from draws against exact sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from preftune.frontier.measure import Frontier, interval, win_rate
from preftune.tradeoff.world import enumerated

WORLD = enumerated(4, 6)


def random_world(groups: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A random reference, (groups, responses) log-probabilities, and an additive reward of every response."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(groups, len(WORLD.below), 5))
    reward = rng.normal(size=(groups, 5)) @ WORLD.counts.numpy().T * 0.4
    return WORLD.logp(torch.from_numpy(logits)).numpy(), reward


def kl(logp: np.ndarray, ref_logp: np.ndarray) -> float:
    return float((np.exp(logp) * (logp - ref_logp)).sum(-1).mean())


def expected(logp: np.ndarray, reward: np.ndarray) -> float:
    return float((np.exp(logp) * reward).sum(-1).mean())


@pytest.mark.parametrize("beta", [0.01, 0.2, 1.0, 3.0, 100.0])
def test_the_slope_of_the_ceiling_is_beta(beta: float) -> None:
    """So KL and reward both fall as beta rises."""
    ref_logp, reward = random_world()
    frontier = Frontier.exact(reward, ref_logp)
    low, high = frontier.at_beta(beta * 1.0001), frontier.at_beta(beta / 1.0001)
    assert high.kl > low.kl
    assert (high.reward - low.reward) / (high.kl - low.kl) == pytest.approx(beta, rel=1e-6)


def tilt(ref_logp: np.ndarray, values: np.ndarray) -> np.ndarray:
    logp = ref_logp + values
    return logp - np.log(np.exp(logp).sum(-1, keepdims=True))


def test_a_point_has_the_kl_and_reward_of_the_tilted_policy() -> None:
    ref_logp, reward = random_world()
    tilted = tilt(ref_logp, reward / 0.7)
    point = Frontier.exact(reward, ref_logp).at_beta(0.7)
    assert point.kl == pytest.approx(kl(tilted, ref_logp), abs=1e-12)
    assert point.reward == pytest.approx(expected(tilted, reward), abs=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.5, 1.0, 40.0])
def test_beta_is_found_from_its_kl(beta: float) -> None:
    ref_logp, reward = random_world()
    frontier = Frontier.exact(reward, ref_logp)
    point = frontier.at_beta(beta)
    assert frontier.at_kl(point.kl).beta == pytest.approx(beta, rel=1e-6)
    assert frontier.gap(point.reward, point.kl) == pytest.approx(0, abs=1e-9)


def test_no_policy_is_above_the_ceiling() -> None:
    ref_logp, reward = random_world()
    frontier = Frontier.exact(reward, ref_logp)
    rng = np.random.default_rng(1)
    for size in (0.1, 1.0, 5.0):
        logp = tilt(ref_logp, size * (rng.normal(size=ref_logp.shape) + reward))
        assert frontier.gap(expected(logp, reward), kl(logp, ref_logp)) > 0


def test_the_ends() -> None:
    ref_logp, reward = random_world(1)
    frontier = Frontier.exact(reward, ref_logp)
    start = frontier.at_kl(0)
    assert (start.beta, start.kl) == (math.inf, pytest.approx(0, abs=1e-12))
    assert start.reward == pytest.approx(expected(ref_logp, reward), abs=1e-12)
    assert frontier.at_kl(-0.1).beta == math.inf  # what an estimate of a KL near 0 may be
    best = int(reward.argmax())
    end = frontier.at_kl(1e6)
    assert (end.beta, end.reward) == (0.0, pytest.approx(reward.max()))
    assert end.kl == pytest.approx(-ref_logp[0, best], abs=1e-9)
    assert frontier.at_beta(0.0) == end


def test_equal_best_responses_share_the_end() -> None:
    ref_logp = np.log([[0.1, 0.3, 0.6]])
    end = Frontier.exact(np.array([[1.0, 1.0, 0.0]]), ref_logp).at_beta(0.0)
    assert end.kl == pytest.approx(-math.log(0.4))
    assert end.effective == pytest.approx(1 / (0.25**2 + 0.75**2))


def test_a_flat_reward_has_a_single_point() -> None:
    point = Frontier.sampled(np.ones((2, 5))).at_kl(1.0)
    assert (point.kl, point.reward, point.effective) == pytest.approx((0, 1, 10), abs=1e-12)


def draws(logp: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(groups, count) indices of responses drawn from policies given by the log-probabilities of all responses."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(len(row), size=count, p=np.exp(row) / np.exp(row).sum()) for row in logp])


def test_draws_estimate_the_exact_ceiling() -> None:
    ref_logp, reward = random_world()
    exact, responses = Frontier.exact(reward, ref_logp), draws(ref_logp, 100_000, 2)
    from_reference = Frontier.sampled(np.take_along_axis(reward, responses, 1))
    assert from_reference.at_beta(1.0).kl == pytest.approx(exact.at_beta(1.0).kl, abs=0.01)
    assert from_reference.at_beta(1.0).reward == pytest.approx(exact.at_beta(1.0).reward, abs=0.01)


def test_effective_draws_are_kishs() -> None:
    assert Frontier.sampled(np.zeros((2, 8))).at_beta(1.0).effective == pytest.approx(16)
    reward = np.array([[0.0, math.log(3)]])
    assert Frontier.sampled(reward).at_beta(1.0).effective == pytest.approx(16 / 10)


def test_win_rate() -> None:
    assert win_rate(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0, 3.0]])) == pytest.approx((1.5 + 2) / 6)
    rng = np.random.default_rng(0)
    policy, baseline = rng.integers(4, size=(3, 40)), rng.integers(4, size=(3, 30))
    wins = [
        (a > b) + 0.5 * (a == b) for group, other in zip(policy, baseline, strict=True) for a in group for b in other
    ]
    assert win_rate(policy, baseline) == pytest.approx(np.mean(wins))
    assert win_rate(policy, baseline) + win_rate(baseline, policy) == pytest.approx(1)


def test_an_interval_covers_as_often_as_it_says() -> None:
    rng, middle, hits = np.random.default_rng(0), np.array([[0.0], [10.0]]), 0
    for trial in range(100):
        low, high = interval(np.mean, middle + rng.normal(size=(2, 50)), rounds=100, seed=trial)
        hits += low <= 5 <= high
    assert 87 <= hits <= 99  # 95 % of 100; resampling across the two groups would give intervals ten times as wide


def test_an_interval_keeps_groups_and_rows_together() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 30))
    both = np.stack([rows, -rows], -1)
    assert interval(lambda a: float(np.abs(a.sum(-1)).max()), both) == (0.0, 0.0)
    assert interval(np.mean, np.tile(np.arange(4.0)[:, None], 9)) == (1.5, 1.5)
    assert interval(np.mean, rows, seed=1) == interval(np.mean, rows, seed=1) != interval(np.mean, rows, seed=2)

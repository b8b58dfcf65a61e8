"""Reward against distance from the reference, with the best that any policy could do as the ceiling.

Of all policies at a given KL from the reference, none has more reward than the tilted reference
pi_beta(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x) of some beta (DPO, arXiv 2305.18290, eq. 4). Its reward and KL are
sums over responses: exact where the responses can be listed, self-normalized importance sampling where they are drawn.
Along the ceiling dR/dKL = beta. Held by tests/frontier/test_measure.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

STEEPEST = 1e9  # reward range over beta from which the tilted reference is its own limit


@dataclass(frozen=True, slots=True)
class Point:
    """A point on the ceiling. kl in nats and reward, averaged over the groups.

    effective: Kish's effective sample size over all groups, for drawn responses.
    """

    beta: float
    kl: float
    reward: float
    effective: float


@dataclass(frozen=True, slots=True)
class Frontier:
    """Rewards of responses and the logarithm of the reference's weight of each: (groups, responses)."""

    reward: np.ndarray
    log_weight: np.ndarray

    @classmethod
    def exact(cls, reward: np.ndarray, ref_logp: np.ndarray) -> Frontier:
        """From a list of all responses. ref_logp: (groups, responses), their log-probabilities, in nats."""
        return cls(np.broadcast_to(reward, ref_logp.shape), _normalized(ref_logp))

    @classmethod
    def sampled(cls, reward: np.ndarray) -> Frontier:
        """From the rewards, (groups, responses), of responses drawn from the reference."""
        return cls(reward, _normalized(np.zeros(reward.shape)))

    def at_beta(self, beta: float) -> Point:
        """The tilted reference at beta, 0 and infinity included."""
        return self._at(1 / beta if beta else math.inf)

    def at_kl(self, kl: float) -> Point:
        """The best policy at most `kl` nats from the reference, by bisection, since KL rises with 1 / beta.

        Where no tilt is that far, the policy of the best responses alone is the ceiling: beta is 0 and `kl` smaller.
        """
        if kl <= 0:
            return self._at(0.0)
        furthest = self._at(math.inf)
        if furthest.kl <= kl:
            return furthest
        low, high = 0.0, 1.0
        steepest = STEEPEST / max(float(np.ptp(self.reward)), 1e-300)
        while self._at(high).kl < kl and high < steepest:
            low, high = high, 2 * high
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self._at(middle).kl < kl else (low, middle)
        return self._at(high)

    def gap(self, reward: float, kl: float) -> float:
        """How much more reward the best policy at this KL has than one of this reward."""
        return self.at_kl(kl).reward - reward

    def _at(self, inverse: float) -> Point:
        """inverse: 1 / beta."""
        below = self.reward - self.reward.max(-1, keepdims=True)
        tilt = np.where(below < 0, -np.inf, 0.0) if math.isinf(inverse) else below * inverse
        log_z = _log_sum(self.log_weight + tilt)
        share = np.exp(self.log_weight + tilt - log_z)
        kl = (share * np.where(share > 0, tilt, 0.0)).sum(-1) - log_z[..., 0]
        reward = (share * self.reward).sum(-1)
        effective = (1 / (share**2).sum(-1)).sum()
        return Point(1 / inverse if inverse else math.inf, float(kl.mean()), float(reward.mean()), float(effective))


def _normalized(log_weight: np.ndarray) -> np.ndarray:
    """The same weights, divided so that they sum to 1 in each group."""
    return log_weight - _log_sum(log_weight)


def _log_sum(logs: np.ndarray) -> np.ndarray:
    """(groups, responses) -> (groups, 1): logarithm of the sum of the exponentials."""
    largest = logs.max(-1, keepdims=True)
    return largest + np.log(np.exp(logs - largest).sum(-1, keepdims=True))


def win_rate(policy: np.ndarray, baseline: np.ndarray) -> float:
    """How often a response of the policy has more reward than one of the baseline to the same prompt; a tie is 1/2.

    policy, baseline: rewards, (groups, responses), of independent draws; every pair of the two is compared.
    """
    rates = []
    for rewards, others in zip(policy, np.sort(baseline, -1), strict=True):
        wins_and_ties = np.searchsorted(others, rewards, "left") + np.searchsorted(others, rewards, "right")
        rates.append(wins_and_ties.mean() / 2 / len(others))
    return float(np.mean(rates))


def interval(
    statistic: Callable[..., float], *samples: np.ndarray, rounds: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap percentile interval of a statistic of independent draws (Efron 1979).

    samples: arrays (groups, responses, ...); each is resampled by itself, within each group, since prompts are fixed.
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(rounds):
        rows = [rng.integers(array.shape[1], size=array.shape[:2]) for array in samples]
        values.append(statistic(*(a[np.arange(len(a))[:, None], r] for a, r in zip(samples, rows, strict=True))))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)

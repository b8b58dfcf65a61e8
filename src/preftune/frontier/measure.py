"""Reward against distance from the reference, with the best that any policy could do as the ceiling.

Of all policies at a given KL from the reference, none has more reward than the tilted reference
pi_beta(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x) of some beta (DPO, arXiv 2305.18290, eq. 4). Its reward and KL are
sums over responses: exact where the responses can be listed, self-normalized importance sampling where they are drawn.
Along the ceiling dR/dKL = beta.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

STEEPEST = 1e9  # reward range over beta from which the tilted reference is its own limit


@dataclass(frozen=True, slots=True)
class Point:
    """A place on the ceiling. kl in nats and reward, averaged over the groups.

    effective: how many draws from the tilted reference the weighted ones are worth, over all groups; means
    something for drawn responses only.
    """

    beta: float
    kl: float
    reward: float
    effective: float


@dataclass(frozen=True, slots=True)
class Frontier:
    """Rewards of responses and the reference's share in each: (groups, responses), shares as logarithms."""

    reward: np.ndarray
    log_share: np.ndarray

    @classmethod
    def exact(cls, reward: np.ndarray, ref_logp: np.ndarray) -> Frontier:
        """From every response there is. ref_logp: (groups, responses), their log-probabilities, in nats."""
        return cls(np.broadcast_to(reward, ref_logp.shape), _normalized(ref_logp))

    @classmethod
    def sampled(cls, reward: np.ndarray, log_ratio: np.ndarray | None = None) -> Frontier:
        """From responses drawn from the reference, or from a policy whose `log_ratio` to it is given.

        reward, log_ratio: (groups, responses), log pi - log pi_ref of the drawn ones, in nats.
        """
        return cls(reward, _normalized(np.zeros(reward.shape) if log_ratio is None else -log_ratio))

    def at_beta(self, beta: float) -> Point:
        """The tilted reference at beta, 0 and infinity included."""
        return self._at(1 / beta if beta else math.inf)

    def at_kl(self, kl: float) -> Point:
        """The best policy at most `kl` nats from the reference; KL rises with 1 / beta, so bisection finds it.

        Where no tilt is that far, the best responses alone are the ceiling: beta is then 0 and `kl` smaller.
        """
        furthest = self._at(math.inf)
        if kl <= 0 or furthest.kl <= kl:
            return self._at(0.0) if kl <= 0 else furthest
        low, high = 0.0, 1.0
        while self._at(high).kl < kl and high < self._steepest:
            low, high = high, 2 * high
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self._at(middle).kl < kl else (low, middle)
        return self._at(high)

    def gap(self, reward: float, kl: float) -> float:
        """What a policy of this reward and KL leaves to be gained without going further from the reference."""
        return self.at_kl(kl).reward - reward

    @property
    def _steepest(self) -> float:
        return STEEPEST / max(float(np.ptp(self.reward)), 1e-300)

    def _at(self, inverse: float) -> Point:
        """inverse: 1 / beta."""
        below = self.reward - self.reward.max(-1, keepdims=True)
        tilt = np.where(below < 0, -np.inf, 0.0) if math.isinf(inverse) else below * inverse
        log_z = _log_sum(self.log_share + tilt)
        share = np.exp(self.log_share + tilt - log_z)
        gained = (share * np.where(share > 0, tilt, 0.0)).sum(-1) - log_z[..., 0]
        effective = (1 / (share**2).sum(-1)).sum()
        beta = 1 / inverse if inverse else math.inf
        return Point(beta, float(gained.mean()), float((share * self.reward).sum(-1).mean()), float(effective))


def _normalized(log_share: np.ndarray) -> np.ndarray:
    """Log-shares that sum to 1 in each group."""
    return log_share - _log_sum(log_share)


def _log_sum(logs: np.ndarray) -> np.ndarray:
    """(groups, responses) -> (groups, 1): logarithm of the sum of the exponentials."""
    largest = logs.max(-1, keepdims=True)
    return largest + np.log(np.exp(logs - largest).sum(-1, keepdims=True))


def win_rate(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How often a response of ours has more reward than one of theirs to the same prompt; a tie counts one half.

    ours, theirs: rewards, (groups, responses), independent draws; every one of ours meets every one of theirs.
    """
    rates = []
    for mine, other in zip(ours, np.sort(theirs, -1), strict=True):
        below = np.searchsorted(other, mine, "left") + np.searchsorted(other, mine, "right")
        rates.append(below.mean() / 2 / len(other))
    return float(np.mean(rates))


def interval(
    statistic: Callable[..., float], *drawn: np.ndarray, rounds: int = 400, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap percentile interval of a statistic of independent draws (Efron 1979).

    drawn: arrays (groups, responses, ...); each is resampled by itself, within each group: prompts are taken as given.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(rounds):
        again = []
        for array in drawn:
            rows = rng.integers(array.shape[1], size=array.shape[:2])
            again.append(array[np.arange(len(array))[:, None], rows])
        found.append(statistic(*again))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

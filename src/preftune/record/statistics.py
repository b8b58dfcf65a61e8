"""Means of recorded numbers and their errors. What is independent is a prompt, not a row.

Rows of one prompt are summed before they are compared (a cluster-robust error with the factor G / (G - 1)), and an
accuracy of ratings is a statistic of two samples (DeLong, DeLong and Clarke-Pearson 1988; with shared prompts
Obuchowski 1997). Held by tests/record/test_statistics.py.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from statistics import NormalDist
from typing import NamedTuple

FEWEST_PROMPTS = 10  # with fewer, the spread between prompts cannot be told
CONFIDENCE = 0.95
LEAST, MOST = -5.0, 40.0  # bounds of a calibration
NORMAL = NormalDist()


class Estimate(NamedTuple):
    """A mean with its standard error. prompts: how many independent groups the rows make up."""

    value: float
    error: float
    rows: int
    prompts: int

    @property
    def certain(self) -> bool:
        """Whether there are prompts enough to say how large the error is."""
        return self.prompts >= FEWEST_PROMPTS

    def half_width(self, confidence: float = CONFIDENCE) -> float:
        """Half of the interval that holds the true value so often."""
        return student_quantile(1 - (1 - confidence) / 2, self.prompts - 1) * self.error

    def p_below(self, bound: float) -> float:
        """One-sided p value of "the true value is not below `bound`"; 1 where too few prompts say anything."""
        if not self.certain:
            return 1.0
        if not self.error:
            return float(self.value >= bound)
        return student_tail((bound - self.value) / self.error, self.prompts - 1)

    def p_above(self, bound: float) -> float:
        """One-sided p value of "the true value is not above `bound`"."""
        return self._replace(value=-self.value).p_below(-bound)


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the finite values, or None where there is none."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def estimate(
    values: Sequence[float], prompts: Sequence[Hashable], classes: Sequence[Hashable] = (), *, share: bool = False
) -> Estimate | None:
    """The mean of finite values, or, where there are classes, the mean of the means of each class.

    prompts: the group of each value. share: the values are verdicts between 0 and 1 or differences of such; equal
    verdicts on a few rows are no proof of certainty, so that an error is that of half an observation at least (Agresti
    and Min 2005), of which there are as many as `effective_rows` says. None without values.
    """
    if not values:
        return None
    of_class: dict[Hashable, list[int]] = defaultdict(list)
    for index, name in enumerate(classes or [None] * len(values)):
        of_class[name].append(index)
    influences, off_squares, means = [0.0] * len(values), 0.0, []
    for rows in of_class.values():
        means.append(math.fsum(values[i] for i in rows) / len(rows))
        groups = len({prompts[i] for i in rows})
        scale = math.sqrt(groups / (groups - 1)) if groups > 1 else math.inf
        for i in rows:
            off = values[i] - means[-1]
            influences[i] = scale * off / len(rows) if off else 0.0
            off_squares += off**2
    count = len(set(prompts))
    error = math.sqrt(math.fsum(total**2 for total in sums_by_prompt(influences, prompts)))
    if share:
        design = error**2 / math.fsum(x**2 for x in influences) if off_squares and error < math.inf else 1.0
        error = math.hypot(error, 1 / (effective_rows(off_squares, design, prompts) + 2))
    elif count < 2:
        error = math.inf
    return Estimate(math.fsum(means) / len(means), error, len(values), count)


def effective_rows(off_squares: float, design: float, prompts: Sequence[Hashable]) -> float:
    """How many independent verdicts these are worth: between the number of prompts and the number of rows.

    off_squares: n p (1 - p) of n verdicts, about the number of the rarer ones; design: how many times the sharing of
    prompts raised the variance (Kish 1965). A few rare verdicts tell little about it, so the weight of two prompts in
    which all rows agree is added: without a wrong row each prompt counts once, and some wrong rows change that little.
    """
    size = math.fsum(rows**2 for rows in Counter(prompts).values()) / len(prompts)
    return len(prompts) * (off_squares / max(1.0, design) + 2) / (off_squares + 2 * size)


def share_of(value: float, rows: int) -> Estimate | None:
    """A share of independent rows of which nothing but their number is known; None without rows."""
    error = math.hypot(math.sqrt(value * (1 - value) / max(1, rows - 1)), 1 / (rows + 2))
    return Estimate(value, error, rows, rows) if rows else None


def slope(y: Sequence[float], x: Sequence[float], prompts: Sequence[Hashable]) -> tuple[Estimate, float] | None:
    """Regression of y on x through the origin, and the correlation about the origin; None where either is all zero."""
    xx, yy = math.fsum(a * a for a in x), math.fsum(b * b for b in y)
    if not xx or not yy:
        return None
    xy = math.fsum(a * b for a, b in zip(x, y, strict=True))
    influences = [a * (b - xy / xx * a) / xx for a, b in zip(x, y, strict=True)]
    return Estimate(xy / xx, robust_error(influences, prompts), len(x), len(set(prompts))), xy / math.sqrt(xx * yy)


def calibration(rewards: Sequence[float], prompts: Sequence[Hashable], weights: Sequence[float] = ()) -> Estimate:
    """The k within -5 and 40 that maximizes the weighted sum of log sigma(k reward); its error sums by prompt.

    A pair whose order is right with probability p is two of these: its reward with weight p, and minus it with 1 - p.
    There is no maximum where every pair is right.
    """
    shares = weights or [1.0] * len(rewards)
    low, high = LEAST, MOST
    for _ in range(50):  # the sum is concave in k, so its slope falls
        k = (low + high) / 2
        gradient = math.fsum(w * reward * _wrong(k * reward) for w, reward in zip(shares, rewards, strict=True))
        low, high = (k, high) if gradient > 0 else (low, k)
    k = (low + high) / 2
    wrong = [w * reward * _wrong(k * reward) for w, reward in zip(shares, rewards, strict=True)]
    curvature = math.fsum(part * reward * _wrong(-k * reward) for part, reward in zip(wrong, rewards, strict=True))
    error = robust_error([part / curvature for part in wrong], prompts) if curvature else math.inf
    return Estimate(k, error, len(rewards), len(set(prompts)))


def _wrong(reward: float) -> float:
    """Probability that a pair of this reward is ranked wrong, sigma(-reward)."""
    return 1 / (1 + math.exp(max(-700.0, min(700.0, reward))))


def robust_error(influences: Sequence[float], prompts: Sequence[Hashable]) -> float:
    """Standard error of a statistic from each row's influence on it; infinite where all rows have one prompt."""
    sums = sums_by_prompt(influences, prompts)
    factor = len(sums) / (len(sums) - 1) if len(sums) > 1 else math.inf
    return math.sqrt(factor * math.fsum(total**2 for total in sums)) if any(sums) else 0.0


def sums_by_prompt(values: Sequence[float], prompts: Sequence[Hashable]) -> list[float]:
    """One sum for each prompt."""
    sums: dict[Hashable, float] = defaultdict(float)
    for value, prompt in zip(values, prompts, strict=True):
        sums[prompt] += value
    return list(sums.values())


def student_quantile(probability: float, freedom: float) -> float:
    """Quantile above the median of Student's t, by Wallace's transformation of the normal one (1959)."""
    if freedom < 1:
        return math.inf
    z = NORMAL.inv_cdf(probability) * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(z * z / freedom))


def student_tail(t: float, freedom: float) -> float:
    """Probability that Student's t is above `t`, by the same transformation."""
    z = math.sqrt(freedom * math.log1p(t * t / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)
    return NORMAL.cdf(-math.copysign(z, t))


def chi_square_tail(value: float, freedom: int) -> float:
    """Probability that chi square is above `value` (Wilson and Hilferty 1931)."""
    width = 2 / (9 * freedom)
    return NORMAL.cdf(-(math.cbrt(value / freedom) - (1 - width)) / math.sqrt(width))

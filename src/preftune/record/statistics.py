"""Means of recorded numbers, some of which may be missing, and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the finite values, or None where there is none."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of independent values; infinite where there are fewer than two."""
    if len(values) < 2:
        return math.inf
    middle = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values))

"""What is measured of a reward model beside what every evaluation measures. Held by tests/evaluate/test_scores.py."""

from __future__ import annotations

import numpy as np

from preftune.evaluate.metrics import TIE, Metrics
from preftune.forward.examples import Examples
from preftune.record.statistics import calibration

BINS = 10


def reward_model_metrics(examples: Examples) -> Metrics:
    """Calibration, best of K, and the size of scores (record.schema.EVALUATION has their meanings)."""
    scores, comparisons = examples.responses.logp, examples.comparisons
    metrics: Metrics = {"score_mean": float(scores.mean()), "score_spread": float(scores.std(correction=0))}
    if len(comparisons.weight):
        margin, preferred, weight = (
            values.numpy() for values in (comparisons.margin, comparisons.preferred, comparisons.weight)
        )
        metrics["calibration_error"] = calibration_error(margin, preferred, weight)
        if np.abs(margin).max() > TIE:
            both = [*margin.tolist(), *(-margin).tolist()]
            weights = [*(weight * preferred).tolist(), *(weight * (1 - preferred)).tolist()]
            metrics["calibration_slope"] = calibration(both, list(map(str, range(len(both)))), weights).value
    best = [
        best_is_first(scores[start : start + len(group.responses)].numpy(), group.ranks)
        for start, group in zip(examples.starts, examples.groups, strict=True)
        if group.kind == "ranking"
    ]
    if best:
        metrics["accuracy_best_of_k"] = float(np.mean(best))
    return metrics


def calibration_error(margin: np.ndarray, preferred: np.ndarray, weight: np.ndarray) -> float:
    """Expected calibration error over ten equal bins of sigma(|margin|), which is from 1/2 to 1; all (pairs,)."""
    sure = 1 / (1 + np.exp(-np.abs(margin)))
    right = np.where(margin > TIE, preferred, np.where(margin < -TIE, 1 - preferred, 0.5))
    place = np.minimum(BINS - 1, ((sure - 0.5) * 2 * BINS).astype(int))
    gaps = np.bincount(place, weight * (sure - right), BINS)
    return float(np.abs(gaps).sum() / weight.sum())


def best_is_first(scores: np.ndarray, ranks: tuple[int, ...]) -> float:
    """1 where the response of the highest score has the first rank; of several such, the share that has."""
    top, first = scores >= scores.max() - TIE, np.array(ranks) == min(ranks)
    return float(first[top].mean())

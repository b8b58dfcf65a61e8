"""Errors of held-out numbers are right where rows share prompts, where ratings have two classes, and where seeds vary.

Each simulation repeats conditions under which errors of independent rows were up to three times too small.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preftune.evaluate.metrics import class_auc
from preftune.record.reader import HeldOutRow, Record
from preftune.record.statistics import (
    Estimate,
    chi_square_tail,
    estimate,
    share_of,
    slope,
    student_quantile,
    student_tail,
)
from preftune.report.compare import differences

Rng = np.random.Generator
TRIALS = 250
NOISE = 1.96 * math.sqrt(0.05 * 0.95 / TRIALS)  # of a share of 5 % of the trials
FALSE_ALARMS = (0.03 - NOISE, 0.08 + NOISE)
COVERED = (0.92 - NOISE, 0.97 + NOISE)


def record(name: str, rows: list[HeldOutRow], **run: Any) -> Record:
    accuracy = float(np.mean([row.accuracy for row in rows]))
    end = {"step": 9, "rows": float(len(rows)), "accuracy": accuracy}
    return Record(path=Path(name), run={"seed": 0, "name": name, **run}, evaluations=(end,), rows=tuple(rows))


def clustered(rng: Rng, prompts: int, each: int, icc: float, share: float = 0.7) -> np.ndarray:
    """(prompts, each) verdicts, right with a probability that varies between prompts (a beta-binomial)."""
    if icc == 0:
        return (rng.random((prompts, each)) < share).astype(float)
    size = 1 / icc - 1
    return (rng.random((prompts, each)) < rng.beta(share * size, (1 - share) * size, (prompts, 1))).astype(float)


def pair_rows(verdicts: np.ndarray) -> list[HeldOutRow]:
    places = ((p, i) for p in range(verdicts.shape[0]) for i in range(verdicts.shape[1]))
    return [HeldOutRow(id="x", place=f"f:{p}-{i}", prompt=str(p), margin=1.0, accuracy=float(verdicts[p, i]),
                       accuracy_of_change=0.0) for p, i in places]  # fmt: skip


def rating_rows(values: np.ndarray, good: np.ndarray) -> list[HeldOutRow]:
    auc = class_auc(values, good)
    return [HeldOutRow(id="x", place=f"f:{i}", prompt=str(i), accuracy=float(share), accuracy_of_change=0.0,
                       chosen_logp=0.0 if g else None, rejected_logp=None if g else 0.0)
            for i, (share, g) in enumerate(zip(auc, good, strict=True))]  # fmt: skip


def alarms(rows: Callable[[Rng], list[HeldOutRow]]) -> float:
    """How often two runs that are equally good on average, on the same rows, are called different."""
    rng, found = np.random.default_rng(1), 0
    for _ in range(TRIALS):
        (difference,) = differences([record("a", rows(rng)), record("b", rows(rng))])
        found += difference.verdict == "beyond noise"
    return found / TRIALS


@pytest.mark.parametrize(("prompts", "each", "icc"), [(300, 1, 0), (30, 10, 0.2), (60, 5, 0.2), (100, 3, 0.3),
                                                     (30, 28, 0.2)])  # fmt: skip
def test_false_alarms_of_pairs_that_share_prompts(prompts: int, each: int, icc: float) -> None:
    rate = alarms(lambda rng: pair_rows(clustered(rng, prompts, each, icc)))
    assert FALSE_ALARMS[0] <= rate <= FALSE_ALARMS[1]


@pytest.mark.parametrize("share", [0.5, 0.2, 0.1])
def test_false_alarms_of_ratings(share: float) -> None:
    good = np.arange(300) < share * 300
    rate = alarms(lambda rng: rating_rows(rng.normal(size=300) + 0.7 * good, good))
    assert FALSE_ALARMS[0] <= rate <= FALSE_ALARMS[1]


def coverage(rows: Callable[[Rng], list[HeldOutRow]], truth: float) -> float:
    rng = np.random.default_rng(2)
    found = [record("a", rows(rng)).accuracy() for _ in range(TRIALS)]
    assert all(e is not None for e in found)
    return float(np.mean([abs(e.value - truth) <= e.half_width() for e in found if e is not None]))


@pytest.mark.parametrize("icc", [0.1, 0.2, 0.4])
def test_intervals_of_pairs_that_share_prompts_cover(icc: float) -> None:
    assert COVERED[0] <= coverage(lambda rng: pair_rows(clustered(rng, 30, 10, icc)), 0.7) <= COVERED[1]


@pytest.mark.parametrize("share", [0.5, 0.2, 0.1])
def test_intervals_of_ratings_cover(share: float) -> None:
    good = np.arange(300) < share * 300
    truth = 0.5 * math.erfc(-0.7 / 2)  # P(good above bad) of two normals 0.7 apart
    assert COVERED[0] <= coverage(lambda rng: rating_rows(rng.normal(size=300) + 0.7 * good, good), truth) <= COVERED[1]


def share_estimate(verdicts: np.ndarray) -> Estimate:
    prompts, each = verdicts.shape
    result = estimate(verdicts.ravel().tolist(), np.repeat(np.arange(prompts), each).tolist(), share=True)
    assert result is not None
    return result


@pytest.mark.parametrize("icc", [0, 0.1, 0.2, 0.4])
@pytest.mark.parametrize(("prompts", "each"), [(12, 32), (10, 100), (40, 8)])
def test_intervals_of_few_prompts_with_many_rows_cover_up_to_the_edge(prompts: int, each: int, icc: float) -> None:
    """The error that sums by prompt alone covers 26 % at the worst of these, a mean of .99."""
    rng = np.random.default_rng(6)
    for truth in (0.5, 0.7, 0.9, 0.95, 0.99):
        results = [share_estimate(clustered(rng, prompts, each, icc, truth)) for _ in range(TRIALS)]
        assert np.mean([abs(r.value - truth) <= r.half_width() for r in results]) >= COVERED[0], truth


@pytest.mark.parametrize(("share", "icc"), [(0.5, 0), (0.78, 0), (0.78, 0.1), (0.7, 0.2)])
def test_an_interval_away_from_the_edge_is_hardly_wider_than_the_bootstrap_over_prompts(share: float,
                                                                                      icc: float) -> None:  # fmt: skip
    rng, ratios = np.random.default_rng(7), []
    for _ in range(50):
        verdicts = clustered(rng, 20, 32, icc, share)
        again = verdicts.mean(1)[rng.integers(20, size=(400, 20))].mean(1)
        ratios.append(share_estimate(verdicts).error / again.std())
    assert 1.0 <= float(np.median(ratios)) <= 1.15


def test_some_wrong_rows_are_no_leap_in_certainty() -> None:
    verdicts, errors = np.ones((12, 32)), []
    for wrong in range(100):
        errors.append(share_estimate(verdicts).error)
        verdicts[wrong % 12, wrong // 12] = 0
    assert errors[0] == pytest.approx(1 / (12 + 2)), "where all agree, a prompt counts once"
    assert min(later / earlier for earlier, later in pairwise(errors)) > 0.7
    assert errors[84] < 0.025, "84 of 384 that are scattered are nearly independent"
    together = np.ones((12, 32))
    together[:3] = 0
    assert share_estimate(together).error > 0.12, "three prompts of which all rows are wrong are three of twelve"


def test_runs_that_differ_in_seed_alone_are_pooled_and_are_the_yardstick() -> None:
    rng, trials, found = np.random.default_rng(3), 100, 0

    def run(name: str, seed: int) -> Record:
        luck = rng.normal(scale=0.06)  # what a seed does to a run, on all rows alike
        return record(name, pair_rows(clustered(rng, 200, 1, 0, 0.7 + luck)), seed=seed)

    for _ in range(trials):
        runs = [run(name, seed) for name in "ab" for seed in range(4)]
        (difference,) = differences(runs)
        found += difference.verdict == "beyond noise"
    assert found / trials <= 0.08
    assert differences(runs[:4]) == [], "seeds are no settings"
    assert "and 3 more seeds" in difference.name


def test_equal_runs_are_equal_where_ids_repeat() -> None:
    rng = np.random.default_rng(4)
    rows = pair_rows(clustered(rng, 100, 2, 0.2))
    older = [HeldOutRow(id=f"{i % 7}", accuracy=row.accuracy, margin=1.0) for i, row in enumerate(rows)]
    for kind in (rows, older):
        (difference,) = differences([record("a", kind), record("b", kind)])
        assert difference.text.startswith("0.0 ±")
        assert difference.verdict == "within noise"


def test_few_prompts_cannot_be_told() -> None:
    rng = np.random.default_rng(5)
    runs = [record(name, pair_rows(clustered(rng, 4, 400, 0.2))) for name in "ab"]
    (difference,) = differences(runs)
    assert difference.verdict == "cannot be told"
    assert difference.text.endswith("points on 1,600 common rows, but they have only 4 prompts")
    accuracy = runs[0].accuracy()
    assert accuracy is not None
    assert not accuracy.certain
    assert accuracy.p_below(1.0) == 1.0


def test_one_sample_by_hand() -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    assert estimate(values, range(4)) == (2.5, pytest.approx(math.sqrt(5 / 3 / 4)), 4, 4)
    assert estimate(values, "aabb") == (
        2.5,
        pytest.approx(math.sqrt(2 * 2 * 2**2 / 4**2)),
        4,
        2,
    )  # sums off by -2 and 2
    assert estimate([1.0], "a") == (1.0, math.inf, 1, 1)
    assert estimate([], "") is None
    sure = estimate([1.0] * 12, range(12), share=True)
    assert sure is not None
    assert sure.error == pytest.approx(1 / 14), "equal verdicts are no certainty"
    assert share_of(0.5, 400) == (0.5, pytest.approx(0.025, rel=0.01), 400, 400)


def test_slope_through_the_origin_by_hand() -> None:
    found = slope([2.0, 4.0, 7.0], [1.0, 2.0, 3.0], range(3))
    assert found is not None
    assert found[0].value == pytest.approx(31 / 14)
    assert found[1] == pytest.approx(31 / math.sqrt(14 * 69))
    assert slope([1.0, 2.0], [0.0, 0.0], range(2)) is None


@pytest.mark.parametrize(("freedom", "quantile"), [(3, 3.182), (9, 2.262), (29, 2.045), (1000, 1.962)])
def test_student(freedom: int, quantile: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, rel=0.012)
    assert student_tail(quantile, freedom) == pytest.approx(0.025, rel=0.05)
    assert student_tail(-quantile, freedom) == pytest.approx(0.975, rel=0.01)


@pytest.mark.parametrize(("value", "freedom", "p"), [(3.841, 1, 0.05), (11.07, 5, 0.05), (15.09, 5, 0.01)])
def test_chi_square(value: float, freedom: int, p: float) -> None:
    assert chi_square_tail(value, freedom) == pytest.approx(p, rel=0.08)


def test_p_values_have_a_side() -> None:
    measured = Estimate(0.6, 0.05, 100, 100)
    assert measured.p_above(0.5) == pytest.approx(0.024, abs=0.002)
    assert measured.p_below(0.5) == pytest.approx(1 - measured.p_above(0.5))

"""What is measured of a reward model: its calibration against known probabilities, and best of K."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making import group

from preftune.evaluate.metrics import best_is_first, calibration_error, reward_model_metrics
from preftune.forward.examples import Examples
from preftune.objective.responses import Responses


def measured(scores: list[float], *rows: object) -> dict[str, float | None]:
    values = torch.tensor(scores, dtype=torch.float64)
    return reward_model_metrics(Examples(rows, Responses(values, torch.ones_like(values))))


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_calibration_finds_the_scale_of_the_margins(factor: float) -> None:
    """Labels drawn from the margins themselves, then margins scaled: the slope undoes it, and only 1 is calibrated."""
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 1.5, 4000)
    true = np.where(rng.random(4000) < 1 / (1 + np.exp(-margin)), margin, -margin)
    rows = [group([1], [2], [3]) for _ in true]
    metrics = measured((factor * np.stack([true, np.zeros(4000)], 1)).reshape(-1).tolist(), *rows)
    assert metrics["calibration_slope"] == pytest.approx(1 / factor, rel=0.1)
    assert (metrics["calibration_error"] < 0.03) == (factor == 1)


def test_votes_are_probabilities() -> None:
    """Margins equal to the votes' log-odds are calibrated, whatever side they favor."""
    rows = [group([1], [2], [3], preferred=p) for p in (0.9, 0.6, 0.3)]
    metrics = measured([x for p in (0.9, 0.6, 0.3) for x in (np.log(p / (1 - p)), 0.0)], *rows)
    assert metrics["calibration_slope"] == pytest.approx(1, abs=1e-6)
    assert metrics["calibration_error"] == pytest.approx(0, abs=1e-9)


def test_calibration_error_by_hand() -> None:
    """Two pairs of confidence .73 of which one is right, and one of .95 that is right."""
    margin, ones = np.array([1.0, -1.0, 3.0]), np.ones(3)
    sure = 1 / (1 + np.exp(-np.array([1.0, 3.0])))
    expected = (2 * abs(sure[0] - 0.5) + abs(sure[1] - 1)) / 3
    assert calibration_error(margin, ones, ones) == pytest.approx(expected)
    assert calibration_error(np.zeros(2), ones[:2], ones[:2]) == 0


def test_best_of_k() -> None:
    assert best_is_first(np.array([0.1, 2.0, 1.0]), (2, 1, 3)) == 1
    assert best_is_first(np.array([3.0, 2.0, 1.0]), (2, 1, 3)) == 0
    assert best_is_first(np.array([2.0, 2.0, 1.0]), (2, 1, 3)) == 0.5
    rows = [group([1], [2], [3], [4], kind="ranking", ranks=(1, 2, 3)), group([1], [2], [3])]
    metrics = measured([5.0, 1.0, 1.0, 0.0, 1.0], *rows)
    assert metrics["accuracy_best_of_k"] == 1
    assert metrics["score_mean"] == pytest.approx(1.6)

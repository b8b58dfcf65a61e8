"""Meters by hand: what counts as right, and in which unit a reward is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from making import group

from preftune import objective as o
from preftune.evaluate.evaluate import RowMetrics
from preftune.evaluate.metrics import ranked_right, rating_auc, rewards, score_metrics
from preftune.forward.examples import Examples
from preftune.objective.responses import Responses
from preftune.record.schema import COMMON


def metrics_of(objective: o.Objective, examples: Examples) -> dict:
    return score_metrics(objective, examples, list(COMMON), loss=0.0)


def scores(logp: list[float], tokens: list[float], reference: float | None = 0.0) -> Responses:
    x, n = (torch.tensor(values, dtype=torch.float64) for values in (logp, tokens))
    return Responses(x, n, None if reference is None else torch.full_like(x, reference))


def test_a_thousandth_of_a_nat_is_a_tie() -> None:
    margin = torch.tensor([0.0, 9e-4, -9e-4, 2e-3, -2e-3], dtype=torch.float64)
    assert ranked_right(margin).tolist() == [0.5, 0.5, 0.5, 1, 0]


def test_accuracy_per_token() -> None:
    """Three nats over ten tokens against two over two: the sum prefers the first, the mean the second."""
    pair = [group([1], list(range(5, 15)), [5, 6])]
    found = metrics_of(o.DPO(), Examples(pair, scores([3.0, 2.0], [10, 2])))
    assert (found["accuracy"], found["accuracy_per_token"], found["margin"]) == (1, 0, 1)
    for objective, right in ((o.CPO(), 0), (o.SimPO(), 1)):  # accuracy is of what the objective goes by
        found = metrics_of(objective, Examples(pair, scores([-30.0, -2.0], [100, 2], None)))
        assert (found["accuracy"], found["accuracy_per_token"], found["margin"]) == (right, 1, -28)


def test_even_votes_have_no_right_order() -> None:
    rows = [group([1], [5], [6], preferred=p, id=str(p)) for p in (0.5, 0.75)]
    views = Examples(rows, scores([3.0, 1.0, 1.0, 2.0], [1] * 4))
    found = metrics_of(o.DPO(), views)
    assert (found["accuracy"], found["margin"]) == (0, 0.5)
    assert [row.get("accuracy") for row in by_row(views).rows()] == [None, 0]
    assert metrics_of(o.DPO(), Examples(rows[:1], scores([3.0, 1.0], [1] * 2)))["accuracy"] is None


def by_row(examples: Examples, start: float = 0.0) -> RowMetrics:
    return RowMetrics(examples, o.DPO(), torch.full_like(examples.responses.logp, start))


def test_rewards_are_in_the_unit_of_their_objective() -> None:
    x = scores([3.0, 2.0], [10, 2])
    cases = {o.DPO(beta=0.1): [0.3, 0.2], o.LengthNormalizedDPO(beta=5.0): [1.5, 5.0], o.DRO(beta=2.0): [6, 4]}
    for objective, expected in cases.items():
        assert rewards(objective, x).tolist() == pytest.approx(expected)
    assert rewards(o.Sum((o.NLL(), o.IPO(), o.KTO(beta=0.5))), x).tolist() == [1.5, 1]
    assert rewards(o.IPO(), x) is None
    assert rewards(o.SimPO(), replace(x, reference=None)) is None
    assert rewards(o.DPO(), replace(x, reference=None)) is None


RATED = [
    group([n], [n], kind="rating", good=good, id=f"r{n}") for n, good in enumerate((True, False, True, False, True))
]


def test_ratings_are_right_as_often_as_a_good_one_stands_above_a_bad_one() -> None:
    """Good at 2, 0 and -1, bad at 1 and 0: six comparisons, of which 2, 0.5 and 0 go right."""
    measured = by_row(Examples(RATED, scores([2.0, 1.0, 0.0, 0.0, -1.0], [1] * 5)))
    auc = measured.rating_auc
    assert auc == {0: 1, 2: 0.25, 4: 0, 1: pytest.approx(1 / 3), 3: pytest.approx(0.5)}
    accuracy = pytest.approx(2.5 / 6)
    expected = {"accuracy": accuracy, "accuracy_of_change": accuracy, "margin": pytest.approx(1 / 3 - 1 / 2)}
    assert measured.rating_metrics() == expected
    assert sum(auc[place] for place in (1, 3)) / 2 == accuracy, "seen from either class"
    assert [(row["id"], row["accuracy"]) for row in measured.rows()] == [(f"r{n}", auc[n]) for n in range(5)]
    level = Examples(RATED, scores([1e-4, 0.0, 0.0, 5e-4, -4e-4], [1] * 5))
    assert set(rating_auc(level, level.responses.logp).values()) == {0.5}


def test_one_class_or_pairs_have_no_accuracy_of_ratings() -> None:
    only = by_row(Examples(RATED[::2], scores([1.0, 2.0, 3.0], [1] * 3)))
    assert (only.rating_auc, only.rating_metrics()) == ({}, {})
    mixed = by_row(Examples([*RATED[:2], group([9], [5], [6])], scores([2.0, 1.0, 0.0, 0.0], [1] * 4)))
    assert mixed.rating_metrics() == {}


def test_ratings_without_a_reference_are_measured_from_the_start() -> None:
    examples = Examples(RATED[:2], scores([-5.0, -4.0], [1, 1], None))
    measured = RowMetrics(examples, o.DPO(), torch.tensor([-9.0, -4.0], dtype=torch.float64))
    assert measured.rating_metrics() == {"accuracy": 1, "accuracy_of_change": 1, "margin": 4}


def test_a_ranking_is_one_row_of_the_mean_of_its_pairs() -> None:
    ranked = [group([1], [5], [6], [7], kind="ranking", ranks=(1, 2, 3), id="k"), group([1], [5], [6], id="p")]
    views = Examples(ranked, scores([1.0, 2.0, 0.0, 3.0, 1.0], [1] * 5))
    rows = by_row(views).rows()
    assert [(row["id"], row["margin"], row["accuracy"]) for row in rows] == [
        ("k", pytest.approx(2 / 3), pytest.approx(2 / 3)),
        ("p", 2, 1),
    ]
    assert "chosen_logp" not in rows[0]
    assert (rows[1]["chosen_logp"], rows[1]["rejected_logp"]) == (3, 1)


def test_a_row_of_any_kind_has_its_changes_under_the_name_of_its_side() -> None:
    rows = [group([1], [5], [6]), *RATED[:2], group([1], [5], kind="demo")]
    measured = by_row(Examples(rows, scores([3.0, 1.0, 2.0, 4.0, 5.0], [1] * 5)), start=1.0).rows()
    changes = [(row.get("chosen_logp_change"), row.get("rejected_logp_change")) for row in measured]
    assert changes == [(2, 0), (1, None), (None, 3), (4, None)]

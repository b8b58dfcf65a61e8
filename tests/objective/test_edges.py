"""Edges of the formulas that the worked pair does not reach: bounds, empty steps, odd weights, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
import torch
from objective.cases import changed, ones, pairs_of, random_pairs, rankings, ratings, ratings_of, sigmoid, soft, values
from torch import Tensor

from preftune import objective as o
from preftune.objective.coupled import LEAST
from preftune.objective.rankings import ranking_pairs
from preftune.objective.ratings import drift, middle
from preftune.tokens.aggregate import LD, Aggregate, Decay, Mean, Plain, SamPO

WORKED = pairs_of()


UNSCORED = changed(WORKED, score=lambda _: None, sharpness=lambda _: None)
TWO_NAMES = "gamma and gamma_ratio are two names of one quantity; give one of them"
NO_SCORE = "this objective needs an explicit score of each response and the rows give none"
NO_DRIFT = "KTO needs mismatched responses to estimate the drift and was given none"
SCORED = (o.ODPO, o.RPO, o.REBEL, o.QRPO, o.DRO)
NO_SHARPNESS = "this objective needs the sharpness of the policy on each response and was given none"
CERTAIN_OR_WORSE = "flip must be at least 0 and below 0.5: at one half a label says nothing"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        *[(lambda table=table: values(table(), UNSCORED), NO_SCORE) for table in SCORED],
        (lambda: o.WPO()(UNSCORED), NO_SHARPNESS),
        (lambda: o.WPO()(replace(WORKED, chosen=UNSCORED.chosen)), NO_SHARPNESS),
        (lambda: drift(ratings_of(WORKED)), NO_DRIFT),
        (lambda: o.FDPO(divergence="js", alpha=0.5), 'alpha has an effect only with divergence = "alpha"'),
        (lambda: o.SimPO(gamma=1.0, gamma_ratio=0.5), TWO_NAMES),
        (lambda: o.AlphaPO(gamma=1.0, gamma_ratio=0.5), TWO_NAMES),
        (lambda: o.DPO(flip=0.5), CERTAIN_OR_WORSE),
        (lambda: o.RobustDPO(flip=-0.1), CERTAIN_OR_WORSE),
        (lambda: o.Sum(parts=()), "a sum needs at least one part"),
        (
            lambda: o.Sum(parts=(o.Sum(parts=(o.DPO(),)),)),  # type: ignore[arg-type]
            "a sum cannot stand in a sum; list its parts in one",
        ),
        (
            lambda: o.Sum(parts=(o.DPO(),), weights=(float("inf"),)),
            "each weight must be a number above 0; leave a part out instead of giving it 0",
        ),
    ],
)
def test_what_is_refused_and_in_which_words(call: object, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        call()  # type: ignore[operator]
    assert str(error.value) == sentence


@pytest.mark.parametrize("alpha", [0.25, 0.75])
def test_alpha_divergence_of_a_given_order(alpha: float) -> None:
    """u is 1 and -1.5 in the worked pair."""
    slope = [(1 - exp(-alpha * u)) / alpha for u in (1.0, -1.5)]
    found = values(o.FDPO(divergence="alpha", alpha=alpha), WORKED)
    assert float(found) == pytest.approx(soft(0.1 * (slope[0] - slope[1])), rel=1e-12)


def test_chi_po_exponent_stops_at_twenty() -> None:
    far = pairs_of(([24.0], [20.5]), ([0.0], [0.0]))
    assert float(values(o.ChiPO(), far)) == pytest.approx(soft(0.35), rel=1e-9)


def test_rpo_both_ways() -> None:
    """Coins with heads sigmoid(0.25) by the policy and sigmoid(0.8) by the scores."""
    policy, scores = sigmoid(0.25), sigmoid(0.8)

    def kl(p: float, q: float) -> float:
        return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))

    assert float(values(o.RPO(), WORKED)) == pytest.approx(kl(scores, policy), rel=1e-9)
    assert float(values(o.RPO(reverse=True), WORKED)) == pytest.approx(kl(policy, scores), rel=1e-9)


def test_beta_dpo_around_a_mean_that_is_not_zero() -> None:
    """Margins 0, 10, 11 and 12, mean 8.25: three quarters kept are the last three, whatever is nearest to 0."""
    pairs = pairs_of(([0.0, 10.0, 11.0, 12.0], [0.0] * 4), ([0.0] * 4, [0.0] * 4))
    found = values(o.BetaDPO(keep=0.75, alpha=0.0), pairs)
    assert found.tolist() == pytest.approx([0] + [4 / 3 * soft(0.1 * m) for m in (10, 11, 12)], rel=1e-9)
    light = values(o.BetaDPO(keep=0.75, alpha=0.0), replace(pairs, weight=pairs.weight * 0.01))
    assert torch.allclose(found, light, rtol=1e-12)


def test_beta_dpo_never_turns_round() -> None:
    pairs = replace(pairs_of(([-100.0], [0.0]), ([0.0], [0.0])), ema=0.0)
    assert float(values(o.BetaDPO(), pairs)) == pytest.approx(soft(-100 * 0.1 * LEAST), rel=1e-12)


def test_dr_dpo_of_light_rows() -> None:
    pairs = random_pairs(4)
    light = replace(pairs, weight=pairs.weight * 0.01)
    assert torch.allclose(values(o.DrDPO(), pairs), values(o.DrDPO(), light), rtol=1e-12)


@pytest.mark.parametrize("good", [True, False])
def test_kto_of_one_class_only(good: bool) -> None:
    """Nothing to balance: each counts as it is."""
    assert o.KTO()(ratings([0.0, 0.0], [good, good], away=[0.0, 0.0])).tolist() == [0.5, 0.5]
    assert o.KTO().with_data_defaults(3.0 * good, 3.0 * (not good)) == o.KTO(good_weight=1.0, bad_weight=1.0)


def test_empty_steps() -> None:
    nobody = ratings([], [], away=[])
    assert drift(nobody) == 0
    assert isinstance(middle(nobody.responses.logp, nobody), Tensor)
    assert len(o.BCO()(nobody)) == 0
    for table in (o.PlackettLuce, o.InfoNCA, o.NCA):
        assert len(table()(rankings([]))) == 0
    assert ranking_pairs(()) == ([], [], [])


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("table", [o.PlackettLuce, o.InfoNCA, o.NCA])
def test_groups_of_different_sizes_do_not_touch(table: type, scored: bool) -> None:
    ratios, scores = [[1.0, -2.0], [0.5, 3.0, -1.0, 2.0], [0.3, 0.1, 0.2]], [[0.01, 0.02], [0.0] * 4, [0.03, 0.0, 0.02]]
    together = table()(rankings(ratios, score=scores if scored else None))
    alone = [
        table()(rankings([ratio], score=[score] if scored else None))
        for ratio, score in zip(ratios, scores, strict=True)
    ]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-12)


def test_three_that_share_the_first_place_share_the_target() -> None:
    """A third each, in double precision."""
    tied = rankings([[1.0, -2.0, 0.5]], [[1, 1, 1]])
    expected = -(0.1 * tied.responses.logp).log_softmax(0).mean()
    assert float(o.InfoNCA()(tied)) == pytest.approx(float(expected), rel=1e-14)


def test_a_prompt_whose_responses_are_all_gone() -> None:
    assert o.PlackettLuce()(rankings([[1.0, 0.0], []])).tolist() == pytest.approx([soft(0.1), 0])


@pytest.mark.parametrize("aggregate", [Plain(), Mean(), LD(), SamPO(), Decay()], ids=lambda a: type(a).__name__)
def test_aggregates_are_fp32_and_repeat(aggregate: Aggregate) -> None:
    weights = aggregate(ones(9), 4)
    assert weights.dtype == np.float32
    assert weights.tolist() == aggregate(ones(9), 4, 0).tolist()


def test_defaults_that_the_worked_pair_does_not_reach() -> None:
    assert (o.DrDPO().tau, o.SLiC().gap, o.DPOPositive().penalty) == (1.0, 1.0, 50.0)


def test_aggregates_as_they_come() -> None:
    assert LD()(ones(3), 1).tolist() == [1, 0.5, 0.5]
    assert Decay()(ones(2), 2)[1] == np.float32(0.98)

"""Ratings, rankings, coupled objectives and aggregates on examples that can be followed by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from math import comb, log

import numpy as np
import pytest
import torch
from making import group
from objective.cases import ones, pairs_of, random_pairs, rankings, ratings, ratings_of, slopes, values

from preftune import objective as o
from preftune.errors import UserError
from preftune.objective.rankings import by_group, ranking_pairs
from preftune.tokens.aggregate import LD, Decay, Mean, Plain, SamPO, apply_aggregate, hashed_positions


def test_kto_by_hand() -> None:
    losses = o.KTO()(ratings([1.0, -1.5], [True, False], away=[0.5, -0.1]))
    assert losses.tolist() == pytest.approx([0.480010659844, 0.457602059226], abs=1e-11)


def test_kto_drift_is_never_negative_and_never_missing() -> None:
    below, none = ratings([1.0], [True], away=[-3.0]), ratings([1.0], [True], away=[0.0])
    assert torch.equal(o.KTO()(below), o.KTO()(none))
    with pytest.raises(ValueError, match="mismatched"):
        o.KTO()(ratings([1.0], [True]))


def test_kto_balances_the_classes() -> None:
    """Three times as many good rows in all: a bad one counts three times, in whichever step it stands."""
    four = ratings([0.3, 0.3, 0.3, -1.0], [True, True, True, False], away=[0.0])
    plain = o.KTO()(four)
    assert o.KTO().with_data_defaults(3.0, 1.0) == o.KTO(good_weight=1.0, bad_weight=3.0)
    assert o.KTO().with_data_defaults(1.0, 3.0) == o.KTO(good_weight=3.0, bad_weight=1.0)
    assert torch.allclose(o.KTO().with_data_defaults(3.0, 1.0)(four), plain * torch.tensor([1, 1, 1, 3.0]))
    assert torch.allclose(o.KTO(bad_weight=2.0)(four), plain * torch.tensor([1, 1, 1, 2.0]))
    assert o.KTO(bad_weight=2.0).with_data_defaults(3.0, 1.0) == o.KTO(good_weight=1.0, bad_weight=2.0), (
        "given ones stay"
    )
    assert o.Sum((o.DPO(), o.KTO())).with_data_defaults(3.0, 1.0).parts == (
        o.DPO(),
        o.KTO(good_weight=1.0, bad_weight=3.0),
    )


def test_bco_holds_its_middle_fixed() -> None:
    """The derivative is that with delta as a constant, not through it."""
    pairs = random_pairs(5)
    reward = 0.1 * torch.cat([pairs.chosen.log_ratio, pairs.rejected.log_ratio])
    middle = (reward[:5].mean() + reward[5:].mean()) / 2
    _, chosen, rejected = slopes(o.BCO(), pairs)
    assert torch.allclose(chosen, -0.1 * (middle - reward[:5]).sigmoid(), rtol=1e-12)
    assert torch.allclose(rejected, 0.1 * (reward[5:] - middle).sigmoid(), rtol=1e-12)


def test_bco_middle_is_halfway_however_many_of_each() -> None:
    found = o.BCO(1.0)(ratings([2.0, 2.0, 2.0, 0.0], [True, True, True, False]))
    assert found.tolist() == pytest.approx([2 * np.log1p(np.exp(-1))] * 4)
    alone = o.BCO(1.0)(ratings([2.0, 2.0], [True, True]))
    assert alone.tolist() == pytest.approx([2 * log(2)] * 2)


def test_dro_takes_the_step_mean_as_v() -> None:
    pairs = ratings_of(random_pairs(3))
    assert o.DRO()(replace(pairs, responses=replace(pairs.responses, logp=pairs.responses.score))).shape == (6,)
    exact = replace(pairs.responses, logp=pairs.responses.ref_logp + pairs.responses.score / 2 + 4)
    assert o.DRO(beta=2.0)(replace(pairs, responses=exact)).abs().max() < 1e-20


def test_odpo_of_scores_that_contradict_the_label() -> None:
    pairs = random_pairs(3)
    level = replace(pairs, rejected=replace(pairs.rejected, score=pairs.chosen.score))
    assert o.ODPO()(level).abs().max() < 1e-20


def test_plackett_luce_is_a_distribution_over_orders() -> None:
    u = [0.3, -1.0, 0.7, 0.1]
    total = 0.0
    for order in permutations(range(4)):
        ranks = [order.index(k) + 1 for k in range(4)]
        total += float(torch.exp(-o.PlackettLuce(1.0)(rankings([u], [ranks]))))
    assert total == pytest.approx(1, abs=1e-12)


def test_plackett_luce_of_several_groups_and_ties() -> None:
    both = o.PlackettLuce(1.0)(rankings([[0.3, -1.0], [0.5, 0.2, 0.1]], [[1, 2], [2, 1, 3]]))
    alone = [o.PlackettLuce(1.0)(rankings([u], [r])) for u, r in (([0.3, -1.0], [1, 2]), ([0.5, 0.2, 0.1], [2, 1, 3]))]
    assert torch.allclose(both, torch.cat(alone))
    assert o.PlackettLuce()(rankings([[0.3, -1.0]], [[1, 1]])).item() == 0
    tied = o.PlackettLuce(1.0)(rankings([[0.4, 0.2, -0.5]], [[1, 1, 2]])).item()
    assert tied == pytest.approx(np.log1p(np.exp(-0.9)) + np.log1p(np.exp(-0.7)))


def test_info_nca_without_scores_is_the_best_against_all() -> None:
    u = [0.4, 0.2, -0.5]
    found = o.InfoNCA(1.0)(rankings([u, u[:2]], [[1, 2, 2], [1, 1]]))
    lse, two = np.log(np.exp(u).sum()), np.log(np.exp(u[:2]).sum())
    assert found.tolist() == pytest.approx([lse - 0.4, two - 0.3])


def test_info_nca_is_the_cross_entropy() -> None:
    found = o.InfoNCA(1.0, 0.5)(rankings([[0.4, -0.5]], [[1, 2]], [[1.0, 0.2]])).item()
    w = 1 / (1 + np.exp(-1.6))
    assert found == pytest.approx(w * np.log1p(np.exp(-0.9)) + (1 - w) * np.log1p(np.exp(0.9)))


def test_by_group_fills_with_zero() -> None:
    table = by_group(torch.arange(1.0, 6.0), rankings([[0, 0], [0, 0, 0]], [[1, 2], [1, 2, 3]]))
    assert table.tolist() == [[1, 2, 0], [3, 4, 5]]


def test_ranking_pairs() -> None:
    better, worse, weight = ranking_pairs([2, 1, 3, 4])
    assert len(weight) == comb(4, 2)
    assert set(weight) == {1 / 6}
    assert set(zip(better, worse, strict=True)) == {(1, 0), (1, 2), (1, 3), (0, 2), (0, 3), (2, 3)}
    assert ranking_pairs([1, 1, 2], "best") == ([0, 1], [2, 2], [0.5, 0.5])
    assert ranking_pairs([2, 1, 3], "best") == ([1, 1], [0, 2], [0.5, 0.5])
    assert ranking_pairs([1, 1]) == ([], [], [])


def test_aot_sets_places_against_places() -> None:
    pairs = random_pairs(6)
    own = (pairs.chosen.logp - pairs.rejected.logp).sort().values
    ref = (pairs.chosen.ref_logp - pairs.rejected.ref_logp).sort().values
    expected = torch.nn.functional.softplus(-0.01 * (own - ref))
    assert torch.allclose(o.AOT()(pairs).sort().values, expected.sort().values, rtol=1e-12)


def test_beta_dpo_leaves_out_the_unusual_and_keeps_the_mean() -> None:
    pairs = random_pairs(10)
    odd = replace(pairs, chosen=replace(pairs.chosen, logp=pairs.chosen.logp + torch.eye(10)[3].double() * 50))
    found = o.BetaDPO(keep=0.9, alpha=0.0)(odd)
    assert found[3] == 0
    kept = torch.arange(10) != 3
    assert torch.allclose(found[kept], o.DPO()(odd)[kept] * 10 / 9)


def test_beta_dpo_follows_the_mean_margin() -> None:
    pairs = random_pairs(4)
    mean = pairs.margin.mean()
    assert torch.allclose(o.BetaDPO(keep=1.0, alpha=0.5)(pairs), o.DPO()(pairs)), (
        "nothing is usual before the first step"
    )
    later = replace(pairs, ema=1.0)
    beta = float(0.1 * (1 + 0.5 * (mean - 1)))
    assert torch.allclose(o.BetaDPO(keep=1.0, alpha=0.5)(later), o.DPO(beta)(pairs))
    _, chosen, _ = slopes(o.BetaDPO(keep=1.0, alpha=0.5), later)
    assert torch.allclose(chosen, slopes(o.DPO(beta), pairs)[1]), "beta is held fixed"
    assert (o.BetaDPO(keep=1.0, alpha=1.0)(replace(pairs, ema=99.0)) > 0).all(), "beta stays above 0"
    assert float(o.BetaDPO().ema_input(pairs)) == pytest.approx(float(mean))


def test_beta_dpo_keeps_what_is_near_to_the_usual() -> None:
    """Margins 0, 1, 2 and 3: those nearest to 3 are the last two, and their mean is half a nat below it."""
    pairs = replace(pairs_of(([0.0, 1.0, 2.0, 3.0], [0.0] * 4), ([0.0] * 4, [0.0] * 4)), ema=3.0)
    found = o.BetaDPO(keep=0.5, alpha=0.6)(pairs)
    beta = 0.1 * (1 + 0.6 * (2.5 - 3.0))
    assert found.tolist() == pytest.approx([0, 0, 2 * np.log1p(np.exp(-beta * 2)), 2 * np.log1p(np.exp(-beta * 3))])


def test_coupled_objectives_of_votes() -> None:
    pairs = random_pairs(4, preferred=0.8)
    plain = values(o.DPO(), pairs)
    assert torch.allclose(o.BetaDPO(keep=1.0, alpha=0.0)(pairs), plain, rtol=1e-12)
    assert torch.allclose(o.DrDPO(tau=1e7)(pairs), plain.mean().expand(4), rtol=1e-6)


def test_dpo_positive_where_chosen_has_dropped() -> None:
    """The penalty stands inside beta, so there the push on chosen is 1 + penalty times that on rejected."""
    pairs = pairs_of(([-13.01, -12.0], [-14.0, -14.0]), ([-13.0, -13.0], [-14.0, -14.0]))
    found, chosen, rejected = slopes(o.DPOPositive(0.3, 50.0), pairs)
    assert found[0].item() == pytest.approx(np.log1p(np.exp(0.3 * 51 * 0.01)))
    assert (-chosen / rejected).tolist() == pytest.approx([51, 1])


def test_hypo_leaves_a_reference_that_is_wrong() -> None:
    pairs = pairs_of(([-12.0], [-13.0]), ([-15.0], [-11.0]))
    assert o.HyPO()(pairs).item() == pytest.approx(np.log1p(np.exp(-0.1)))


def test_slic_pushes_while_the_gap_is_small() -> None:
    found, chosen, rejected = slopes(o.SLiC(gap=3.0), pairs_of(([-12.0], [-13.0])))
    assert found.item() == pytest.approx(2 + 1.2)
    assert (chosen.item(), rejected.item()) == pytest.approx((-1.1, 1.0))


@pytest.mark.parametrize(("far", "value"), [(5.0, -1.0), (-5.0, 1.0)])
def test_chi_po_stops_at_its_bound(far: float, value: float) -> None:
    found, chosen, _ = slopes(o.ChiPO(beta=1.0, bound=0.5), pairs_of(([-13.0 + far], [-14.0])))
    assert found.item() == pytest.approx(np.log1p(np.exp(value)))
    assert chosen.item() == 0


def test_dr_dpo_pushes_doubtful_pairs_less() -> None:
    pairs = random_pairs(6)
    _, plain, _ = slopes(o.DPO(), pairs)
    found, chosen, _ = slopes(o.DrDPO(tau=0.1), pairs)
    share = torch.softmax(-o.DPO()(pairs) / 0.1, 0)
    assert torch.allclose(chosen, 6 * share * plain, rtol=1e-10)
    assert found.unique().numel() == 1


def test_ld_and_decay() -> None:
    assert LD(0.25)(ones(5), 3).tolist() == [1, 1, 1, 0.25, 0.25]
    assert LD(0.25)(ones(3), 5).tolist() == [1, 1, 1]
    assert Decay(0.5)(ones(4), 9).tolist() == [1, 0.5, 0.25, 0.125]
    assert LD()(ones(3), 1).dtype == np.float32


def test_aggregates_go_by_the_weights_that_rows_give() -> None:
    given = np.array([2, 0, 1, 1], np.float32)
    assert Plain()(given, 2).tolist() == [2, 0, 1, 1]
    assert Mean()(given, 2).tolist() == [0.5, 0, 0.25, 0.25]
    assert LD(0.5)(given, 2).tolist() == [2, 0, 0.5, 0.5]
    assert Decay(0.5)(given, 2).tolist() == [2, 0, 0.25, 0.125]
    assert set(SamPO()(given, 4).tolist()) == {2, 0, 1}


def test_weighing_rows() -> None:
    """A response stands against the shortest other one; what its row gives is kept; nothing at all is an error."""
    made = group([1], [5, 6, 7], [8], [9, 4], kind="ranking", ranks=(1, 2, 3))
    (found,) = apply_aggregate([made], LD(0.5))
    assert [w.tolist() for w in found.column("weight")] == [[1, 0.5, 0.5], [1], [1, 0.5]]
    assert {w.dtype for w in found.column("weight")} == {np.dtype(np.float32)}
    assert apply_aggregate([made], Plain()) == [made]
    given = tuple(np.array(w, np.float32) for w in ([0, 2, 0], [1], [1, 1]))
    (both,) = apply_aggregate([made.with_column("weight", given)], LD(0.5))
    assert [w.tolist() for w in both.column("weight")] == [[0, 1, 0], [1], [1, 0.5]]
    with pytest.raises(UserError) as raised:
        apply_aggregate([made.with_column("weight", given)], LD(0.0))
    told = "made:1: nothing of a response counts. Its token weights and the aggregate together leave no token."
    assert str(raised.value) == told
    alone = group([1], [5, 6, 7], kind="rating")
    assert apply_aggregate([alone], LD(0.5))[0].column("weight")[0].tolist() == [1, 1, 1]
    drawn = [
        apply_aggregate([group([k], [5, 6, 7, 8], [9])], SamPO())[0].column("weight")[0].tolist() for k in range(9)
    ]
    assert len({str(d) for d in drawn}) > 1, "the draw goes by the tokens"
    assert all(sum(d) == 1 for d in drawn)


def test_sampo_keeps_as_many_as_the_other_has() -> None:
    part = SamPO()
    assert part(ones(9), 4, 7).sum() == 4
    assert part(ones(4), 9, 7).tolist() == [1] * 4
    assert (part(ones(9), 4, 7) == part(ones(9), 4, 7)).all()
    assert any((part(ones(30), 10, 7) != part(ones(30), 10, seed)).any() for seed in (8, 9))
    drawn = np.mean([part(ones(10), 3, seed) for seed in range(4000)], axis=0)
    assert np.abs(drawn - 0.3).max() < 0.03


def test_the_draw_is_the_same_everywhere() -> None:
    """SplitMix64, so that a resumed or repeated run keeps the same tokens; held against whole numbers of Python's."""
    for seed in (0, 1, 2**63):
        assert hashed_positions(seed, 4).tolist() == [split_mix(seed, place) for place in range(4)]
    assert len(set(hashed_positions(0, 1000).tolist())) == 1000


def split_mix(seed: int, place: int) -> int:
    mask = 2**64 - 1
    z = (seed * 0xD1342543DE82EF95 + (place + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)

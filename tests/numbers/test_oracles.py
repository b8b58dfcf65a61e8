"""Every objective against worked numbers and against what must leave it unchanged. A new one without a row fails."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from objective.cases import CASES, Case, changed, leaves, pairs_of, random_pairs, slopes, values

from preftune import objective as o
from preftune.objective.base import swapped
from preftune.objective.responses import Pairs, Responses

every = pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
SINGLE = [c for c in CASES if not isinstance(c.objective, o.Sum)]
STARTS = [c for c in CASES if c.start is not None]
DETACHED = {"bco", "beta_dpo", "dro", "mpo"}  # each has a number of the step that is held fixed; see test_coupled
FREE = [c for c in CASES if c.name not in DETACHED]
single = pytest.mark.parametrize("case", SINGLE, ids=[c.name for c in SINGLE])


def by_prompt(x: torch.Tensor) -> torch.Tensor:
    """A positive number of each pair, none like the other."""
    return 0.3 + 0.7 * torch.arange(len(x), dtype=x.dtype) ** 2


def uses_reference(case: Case) -> bool:
    return any("reference" in part.reads for _, part in o.parts(case.objective))


def test_every_objective_has_a_row() -> None:
    assert {type(c.objective) for c in CASES} == set(get_args(o.Single | o.Sum))


@every
def test_worked_pair(case: Case) -> None:
    """Value to 1e-9 and derivatives to the nine digits that were printed, in float64; 1e-6 in float32."""
    for dtype, value_off, slope_off in ((torch.float64, 1e-9, 2e-9), (torch.float32, 1e-6, 1e-6)):
        found = [float(x) for x in slopes(case.objective, pairs_of(dtype=dtype))]
        value, *slope = case.golden
        assert found[0] == pytest.approx(value, rel=value_off, abs=value_off)
        assert found[1:] == pytest.approx(slope, rel=slope_off, abs=slope_off)


@pytest.mark.parametrize("case", STARTS, ids=[c.name for c in STARTS])
def test_value_where_the_policy_is_the_reference(case: Case) -> None:
    found = values(case.objective, pairs_of(([-13.0], [-14.0])))
    assert float(found) == pytest.approx(case.start, rel=1e-12)


@every
def test_adding_to_both_responses(case: Case) -> None:
    """A number that depends on the prompt alone cancels in objectives of the margin, and only there."""
    pairs = random_pairs(4) if "dpo_positive" not in case.name else pairs_of()  # its penalty is off above the reference
    plain = values(case.objective, pairs)
    more = values(case.objective, changed(pairs, logp=lambda x: x + by_prompt(x)))
    assert torch.allclose(plain, more, rtol=1e-9, atol=1e-11) == case.shift


@single
def test_reference_is_used_or_not_needed(case: Case) -> None:
    pairs = random_pairs(4, seed=1)
    without = changed(pairs, reference=lambda _: None)
    if not uses_reference(case):
        assert torch.equal(values(case.objective, pairs), values(case.objective, without))
        return
    with pytest.raises(ValueError, match="needs a reference"):
        values(case.objective, without)
    if case.name != "dpo_positive":
        shifted = values(case.objective, changed(pairs, reference=lambda x: x - by_prompt(x)))
        assert torch.allclose(values(case.objective, pairs), shifted, rtol=1e-9, atol=1e-11) == case.shift


@every
def test_each_token_twice(case: Case) -> None:
    pairs = random_pairs(4, seed=2)
    twice = changed(pairs, logp=lambda x: 2 * x, reference=lambda x: 2 * x, tokens=lambda x: 2 * x)
    same = torch.allclose(values(case.objective, pairs), values(case.objective, twice), rtol=1e-9, atol=1e-11)
    assert same == case.doubled


def test_each_token_twice_is_twice_the_beta() -> None:
    pairs = random_pairs(4, seed=2)
    twice = changed(pairs, logp=lambda x: 2 * x, reference=lambda x: 2 * x)
    for table in (o.DPO, o.Hinge, o.RobustDPO, o.PlackettLuce, o.APOZero, o.BCO, o.EXO):
        assert torch.allclose(values(table(beta=0.1), twice), values(table(beta=0.2), pairs), rtol=1e-12)


def averaged(pairs: Pairs) -> Pairs:
    """What objectives see of the pairs under aggregate = "mean"."""

    def side(s: Responses) -> Responses:
        return replace(s, logp=s.logp / s.tokens, reference=s.ref_logp / s.tokens, weight_sum=torch.ones_like(s.tokens))

    return replace(pairs, chosen=side(pairs.chosen), rejected=side(pairs.rejected))


@single
def test_means_over_tokens_change_what_reads_sums(case: Case) -> None:
    pairs = random_pairs(4, seed=2)
    same = torch.allclose(values(case.objective, pairs), values(case.objective, averaged(pairs)), rtol=1e-9, atol=1e-11)
    assert same == case.objective.length_normalized


def test_a_mean_divides_by_the_weights_that_are_summed() -> None:
    """Masking tokens is leaving them out, whatever their number."""
    kept = random_pairs(4)
    masked = changed(kept, tokens=lambda x: x + 7)
    masked = replace(masked, chosen=replace(masked.chosen, weight_sum=kept.chosen.tokens),
                     rejected=replace(masked.rejected, weight_sum=kept.rejected.tokens))  # fmt: skip
    tables = (o.SimPO, o.IPO, o.LengthNormalizedDPO, o.ORPO, o.NLL, o.CPO, o.SimPER)
    for objective in (*(table() for table in tables), o.NLL("token")):
        assert torch.equal(values(objective, masked), values(objective, kept))
    assert torch.allclose(o.LengthNormalizedDPO(5.0)(kept), o.DPO(5.0)(averaged(kept)), rtol=1e-14)


def test_swapping_the_responses() -> None:
    """l(x) - l(-x) = -x for the logistic, so for DPO the reward difference itself."""
    pairs = random_pairs(5)
    assert torch.allclose(o.DPO()(pairs) - o.DPO()(swapped(pairs)), -0.1 * pairs.margin, rtol=1e-12)


@every
def test_only_logp_takes_a_gradient(case: Case) -> None:
    pairs = leaves(random_pairs(4, seed=3))
    frozen = ("reference", "score", "sharpness")
    sides = [
        replace(s, **{k: getattr(s, k).clone().requires_grad_() for k in frozen})
        for s in (pairs.chosen, pairs.rejected)
    ]
    pairs = replace(pairs, chosen=sides[0], rejected=sides[1])
    held = [getattr(s, k) for s in sides for k in frozen]
    found = torch.autograd.grad(values(case.objective, pairs).sum(), held, allow_unused=True)
    assert all(g is None or not g.any() for g in found)


@every
def test_first_push_is_towards_chosen(case: Case) -> None:
    _, chosen, rejected = slopes(case.objective, pairs_of(([-13.0], [-14.0])))
    if case.name == "apo_down":
        assert float(chosen) == pytest.approx(0, abs=1e-12)
    else:
        assert chosen < 0
    assert rejected >= 0


def test_apo_down_lowers_chosen_afterwards() -> None:
    assert slopes(o.APODown(), pairs_of())[1] > 0


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_extremes_are_finite(case: Case, dtype: torch.dtype) -> None:
    """Ratios of 1e4 nats either way, and tokens so sure that the odds or an exponent would be infinite."""
    far = ([-1e4, -1.0, -1e4, -1.0, -1e4], [-1.0, -1e4, -1e4, -1.0, -1.0])
    reference = ([-1.0, -1e4, -1.0, -1e4, -1.0], [-1e4, -1.0, -1.0, -1e4, -1.0])
    sure = [-1e-8, -1e-12, 0.0, -300.0, -1e-8]
    for pairs in (
        pairs_of(far, reference, dtype=dtype), pairs_of(far, reference, tokens=(1, 1), dtype=dtype),
        pairs_of((sure, sure[::-1]), tokens=(1, 1), dtype=dtype), pairs_of((sure, sure), tokens=(1, 4), dtype=dtype),
        pairs_of(far, reference, dtype=dtype, preferred=0.75),
    ):  # fmt: skip
        for found in slopes(case.objective, pairs):
            assert found.isfinite().all(), case.name


@every
def test_order_of_the_examples(case: Case) -> None:
    """Values and derivatives go with their pair, wherever it stands in the step."""
    pairs = random_pairs(7, seed=4)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    moved = Pairs(pairs.chosen[order], pairs.rejected[order], pairs.weight[order], pairs.preferred[order])
    for plain, other in zip(slopes(case.objective, pairs), slopes(case.objective, moved), strict=True):
        assert torch.allclose(plain[order], other, rtol=1e-12, atol=1e-14)


@single
def test_uncoupled_means_that_an_example_stands_alone(case: Case) -> None:
    pairs = random_pairs(5, seed=5)
    together = slopes(case.objective, pairs)
    alone = [slopes(case.objective, pick(pairs, i)) for i in range(5)]
    same = all(
        torch.allclose(t, torch.cat(a), rtol=1e-12) for t, a in zip(together, zip(*alone, strict=True), strict=True)
    )
    # KTO is coupled by the drift and by the weights, which here are given and balanced
    assert same == (not case.objective.needs_full_step or case.name == "kto")


def pick(pairs: Pairs, i: int) -> Pairs:
    at = torch.tensor([i])
    return Pairs(pairs.chosen[at], pairs.rejected[at], pairs.weight[at], pairs.preferred[at])


@single
def test_votes(case: Case) -> None:
    """p l(pair) + (1 - p) l(swapped), to the bit the plain value at p = 1; nothing where scores or order decide."""
    pairs = random_pairs(6, seed=6)
    if "votes" not in case.objective.reads:
        assert torch.equal(
            values(case.objective, replace(pairs, preferred=pairs.preferred * 0.7)), values(case.objective, pairs)
        )
        return
    mixed = replace(pairs, preferred=torch.tensor([1.0, 0.7, 1.0, 1.0, 0.7, 1.0], dtype=torch.float64))
    if not case.objective.needs_full_step:
        sure = mixed.preferred == 1
        plain = slopes(case.objective, pairs)
        assert all(torch.equal(a[sure], b[sure]) for a, b in zip(plain, slopes(case.objective, mixed), strict=True))
        other = values(case.objective, swapped(pairs))
        expected = 0.7 * plain[0][~sure] + 0.3 * other[~sure]
        assert torch.allclose(values(case.objective, mixed)[~sure], expected, rtol=1e-12)
    else:
        assert not torch.equal(values(case.objective, mixed), values(case.objective, pairs))


@pytest.mark.parametrize("case", FREE, ids=[c.name for c in FREE])
def test_derivatives_are_those_of_the_value(case: Case) -> None:
    pairs = leaves(random_pairs(4, seed=7))

    def value(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        sides = replace(pairs.chosen, logp=chosen), replace(pairs.rejected, logp=rejected)
        return values(case.objective, replace(pairs, chosen=sides[0], rejected=sides[1])).sum() / 100

    assert torch.autograd.gradcheck(value, (pairs.chosen.logp, pairs.rejected.logp), eps=1e-6, atol=1e-6)

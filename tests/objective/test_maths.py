"""The functions that objectives are made of, where they are delicate."""

from __future__ import annotations

import math

import pytest
import torch

from preftune.objective import maths


@pytest.mark.parametrize("x", [-1e-12, -1e-8, -1e-3, -0.5, -math.log(2), -0.7, -5.0, -40.0, -300.0])
def test_log1mexp_and_its_slope(x: float) -> None:
    at = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    value = maths.log1mexp(at)
    value.backward()
    assert value.item() == pytest.approx(math.log1p(-math.exp(x)) if x < -1 else math.log(-math.expm1(x)), rel=1e-13)
    assert at.grad is not None
    assert at.grad.item() == pytest.approx(math.exp(x) / math.expm1(x), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("x", [0.0, -1e-12, -1e-8, -300.0, -1e30])
def test_log_odds_are_finite_in_float32(x: float) -> None:
    at = torch.tensor([x], dtype=torch.float32, requires_grad=True)
    value = maths.log_odds(at)
    value.backward()
    assert value.isfinite()
    assert at.grad is not None
    assert at.grad.isfinite()


def test_log_odds() -> None:
    p = torch.tensor([0.1, 0.5, 0.99], dtype=torch.float64)
    assert torch.allclose(maths.log_odds(p.log()), (p / (1 - p)).log(), rtol=1e-12)


def test_coins() -> None:
    """The KL against its definition, and 0 where the two coins are one."""
    x, y = torch.tensor([0.3, -2.0], dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
    p, q = x.sigmoid(), y.sigmoid()
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert torch.allclose(maths.kl_of_coins(x, y), kl, rtol=1e-12)
    assert not maths.kl_of_coins(x, x).any()


def test_box_cox() -> None:
    x = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64)
    assert torch.equal(maths.box_cox(x, 0), x)
    assert torch.allclose(maths.box_cox(x, 1.0), 1 - (-x).exp())
    assert torch.allclose(maths.box_cox(x, 1e-9), x, atol=1e-7)
    assert maths.box_cox(torch.tensor([-1e4]), 0.5).isfinite()


def test_bounded_exp_has_no_slope_beyond() -> None:
    x = torch.tensor([1.0, 81.0], requires_grad=True)
    maths.bounded_exp(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([math.e, 0.0])


def test_hinge_square_logistic() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    assert maths.hinge(x).tolist() == [3, 1, 0]
    assert maths.square(x, 1).tolist() == [9, 1, 4]
    assert torch.allclose(maths.logistic(x) - maths.logistic(-x), -x)


def test_weighted_mean() -> None:
    values, weight = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.0, 1.0, 0.0])
    assert maths.weighted_mean(values, weight) == 1.5
    assert maths.weighted_mean(values, 0 * weight) == 0

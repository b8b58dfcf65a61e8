"""Objectives that become one another where a constant goes to its end, and the one function of the seed document."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from objective.cases import ones, pairs_of, random_pairs, slopes, values

from preftune import objective as o
from preftune.objective.base import swapped
from preftune.objective.responses import Pairs, Responses
from preftune.tokens.aggregate import LD, Decay, Plain

NEAR = 1e-9
LIMITS = {
    "dpo, flip 0": (o.DPO(flip=0.0), o.DPO(), 0.0),
    "robust, flip 0": (o.RobustDPO(flip=0.0), o.DPO(), 1e-15),
    "r_dpo, alpha 0": (o.RDPO(alpha=0.0), o.DPO(), 0.0),
    "dpo_positive, penalty 0": (o.DPOPositive(beta=0.1, penalty=0.0), o.DPO(), 0.0),
    "odpo, alpha 0": (o.ODPO(alpha=0.0), o.DPO(), 1e-15),
    "beta_dpo, alpha 0, all kept": (o.BetaDPO(alpha=0.0, keep=1.0), o.DPO(), 1e-15),
    "f_dpo, alpha to 0": (o.FDPO(divergence="alpha", alpha=NEAR), o.DPO(), 1e-7),
    "f_dpo, alpha to 1": (o.FDPO(divergence="alpha", alpha=1 - NEAR), o.FDPO(), 1e-7),
    "chi_po, bound far": (o.ChiPO(bound=1e6), o.ChiPO(), 0.0),
    "alpha_po, alpha 0": (o.AlphaPO(alpha=0.0, beta=2.0, gamma=1.0), o.SimPO(), 0.0),
    "alpha_po, alpha to 0": (o.AlphaPO(alpha=NEAR, beta=2.0, gamma=1.0), o.SimPO(), 1e-6),
    "orpo, odds_weight 0": (o.ORPO(odds_weight=0.0), o.NLL(), 1e-15),
    "cpo, nll_weight 0, plus nll": (o.CPO(), o.Sum((o.CPO(nll_weight=0.0), o.NLL())), 1e-15),
    "plackett_luce of two": (o.PlackettLuce(), o.DPO(), 1e-14),
    "sum of one": (o.Sum((o.DPO(),), (1.0,)), o.DPO(), 0.0),
    "simpo, gamma by two names": (o.SimPO(beta=10, gamma=3.0), o.SimPO(beta=10, gamma_ratio=0.3), 1e-15),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limit(name: str) -> None:
    one, other, off = LIMITS[name]
    pairs = random_pairs(6)
    for a, b in zip(slopes(one, pairs), slopes(other, pairs), strict=True):
        assert torch.allclose(a, b, rtol=off, atol=off)


def test_robust_is_unbiased() -> None:
    """Its mean over random flips of the label is DPO on the true one."""
    pairs = random_pairs(6)
    mean = 0.8 * o.RobustDPO(flip=0.2)(pairs) + 0.2 * o.RobustDPO(flip=0.2)(swapped(pairs))
    assert torch.allclose(mean, o.DPO()(pairs), rtol=1e-12)


def test_flip_and_votes_compose() -> None:
    both = random_pairs(4, preferred=0.8 * 0.9 + 0.2 * 0.1)
    assert torch.allclose(values(o.DPO(flip=0.1), random_pairs(4, preferred=0.8)), values(o.DPO(), both), rtol=1e-14)


def test_one_pair_a_step() -> None:
    pairs = pairs_of()
    assert torch.equal(o.AOT(beta=0.1)(pairs), o.DPO()(pairs))
    assert torch.allclose(o.AOT(beta=0.1, paired=False)(pairs), o.DPO()(pairs), rtol=1e-14)
    assert torch.allclose(o.DrDPO()(pairs), o.DPO()(pairs), rtol=1e-14)


def test_dr_dpo_is_the_mean_as_tau_grows() -> None:
    pairs = random_pairs(8)
    assert torch.allclose(o.DrDPO(tau=1e6)(pairs), o.DPO()(pairs).mean().expand(8), rtol=1e-6)
    worst = o.DPO()(pairs).min()
    assert torch.allclose(o.DrDPO(tau=1e-4)(pairs), worst.expand(8), atol=1e-3)


def test_wpo_on_a_policy_that_is_certain() -> None:
    pairs = random_pairs(4)
    certain = replace(pairs, chosen=replace(pairs.chosen, sharpness=0 * pairs.weight),
                      rejected=replace(pairs.rejected, sharpness=0 * pairs.weight))  # fmt: skip
    assert torch.equal(o.WPO()(certain), o.DPO()(certain))
    sharper = replace(certain, chosen=replace(certain.chosen, sharpness=pairs.weight))
    assert torch.equal(o.WPO()(sharper), o.DPO()(certain)), "weights stop at 1"


def test_two_logits_follow_their_closed_form() -> None:
    """Gradient flow of DPO on one pair of a two-response softmax solves beta h + exp(beta h) = 1 + 2 beta^2 t."""
    beta, dt, steps = 0.5, 1e-3, 4000
    theta = torch.zeros(2, dtype=torch.float64)
    reference = theta.log_softmax(0)
    one = torch.ones(1, dtype=torch.float64)

    def force(at: torch.Tensor) -> torch.Tensor:
        x = at.clone().requires_grad_()
        logp = x.log_softmax(0)
        sides = [Responses(logp[i : i + 1], one, reference[i : i + 1]) for i in (0, 1)]
        loss = o.DPO(beta)(Pairs(*sides, one, one)).sum()
        return -torch.autograd.grad(loss, x)[0]

    for _ in range(steps // 4):  # Runge-Kutta of second order, four steps in one
        theta = theta + 4 * dt * force(theta + 2 * dt * force(theta))
    h = float(theta[0] - theta[1])
    assert beta * h + np.exp(beta * h) == pytest.approx(1 + 2 * beta**2 * dt * steps, abs=1e-5)


def test_dpo_loss_is_the_seed_and_the_objective_to_the_bit() -> None:
    pairs = random_pairs(9)
    four = [pairs.chosen.logp, pairs.rejected.logp, pairs.chosen.ref_logp, pairs.rejected.ref_logp]
    for dtype in (torch.float64, torch.float32):
        cast = [x.to(dtype) for x in four]
        for beta in (0.1, 0.37):
            found = o.dpo_loss(*cast, beta=beta)
            plain = -torch.nn.functional.logsigmoid(beta * ((cast[0] - cast[2]) - (cast[1] - cast[3]))).mean()
            assert found.shape == ()
            assert torch.equal(found, plain)
    assert torch.equal(o.dpo_loss(*four), o.DPO(beta=0.1)(pairs).mean())


def test_dpo_loss_detaches_the_reference() -> None:
    four = [x.clone().requires_grad_() for x in random_pairs(3).chosen.logp.new_ones(4, 3)]
    o.dpo_loss(*four).backward()
    assert all(x.grad is not None for x in four[:2])
    assert all(x.grad is None for x in four[2:])
    with pytest.raises(ValueError, match="above 0"):
        o.dpo_loss(*four, beta=0.0)


def test_aggregates_that_change_nothing() -> None:
    for part in (LD(alpha=1.0), Decay(gamma=1.0), Plain()):
        assert part(ones(9), 4, seed=3).tolist() == [1.0] * 9


def test_values_do_not_need_a_gradient() -> None:
    assert not values(o.DPO(), random_pairs(2)).requires_grad

"""Where endless data lead each objective, in a world of six responses whose probabilities can be counted.

The policy is a softmax over the six; examples are all that there are, each with the weight that it has in the
population. The minimum is found by L-BFGS and held against the closed form: KL below 1e-10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from math import log, sqrt
from typing import get_args

import numpy as np
import pytest
import torch
from objective.cases import values
from torch import Tensor

from preftune import objective as o
from preftune.objective.responses import Demos, Pairs, Rankings, Ratings, Responses

BETA = 0.5
_DRAW = np.random.default_rng(5)
REWARD = _DRAW.normal(size=6) * 0.7
REF = np.log(_DRAW.dirichlet(np.full(6, 3.0)))
MU = _DRAW.dirichlet(np.full(6, 4.0))  # how often a response is judged
TOKENS = _DRAW.integers(3, 9, size=6).astype(float)
BEATS = 1 / (1 + np.exp(REWARD[None, :] - REWARD[:, None]))  # [i, j]: probability that i is preferred to j
BETTER, WORSE = (np.array(side) for side in zip(*permutations(range(6), 2), strict=True))

Array = np.ndarray
View = Callable[[Tensor], tuple[object, Tensor]]  # log-policy (6,) -> what the objective sees, and weights


def tensor(x: Array) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def scores(logp: Tensor, at: Array) -> Responses:
    index = torch.as_tensor(at)
    given = (tensor(TOKENS), tensor(REF), tensor(REWARD), -0.1 * tensor(TOKENS))
    return Responses(logp[index], *(field[index] for field in given))


def judged(flipped: float = 0.0) -> View:
    """Every ordered pair, as often as judges of the rewards prefer it, a share of the labels flipped."""
    share = BEATS * (1 - flipped) + BEATS.T * flipped
    weight = tensor((MU[:, None] * MU[None, :] * share)[BETTER, WORSE])
    return lambda logp: (Pairs(scores(logp, BETTER), scores(logp, WORSE), weight, torch.ones_like(weight)), weight)


def voted(logp: Tensor) -> tuple[Pairs, Tensor]:
    """Every unordered pair once, with the share of judges for it."""
    once = BETTER < WORSE
    i, j = BETTER[once], WORSE[once]
    weight = tensor(MU[i] * MU[j])
    return Pairs(scores(logp, i), scores(logp, j), weight, tensor(BEATS[i, j])), weight


def ranked(logp: Tensor) -> tuple[Rankings, Tensor]:
    """Every order of three of the responses, as often as Plackett-Luce judges give it."""
    orders = list(permutations(range(6), 3))
    e = np.exp(REWARD)
    chance = [MU[[a, b, c]].prod() * e[a] / e[[a, b, c]].sum() * e[b] / e[[b, c]].sum() for a, b, c in orders]
    weight = tensor(np.array(chance) / sum(chance))
    group = torch.arange(len(orders)).repeat_interleave(3)
    rank = torch.tensor([1, 2, 3]).repeat(len(orders))
    return Rankings(scores(logp, np.array(orders).reshape(-1)), group, rank, weight), weight


def scored(logp: Tensor) -> tuple[Rankings, Tensor]:
    """One prompt with all six responses and their scores."""
    one = torch.ones(1, dtype=torch.float64)
    return Rankings(scores(logp, np.arange(6)), torch.zeros(6, dtype=torch.long), torch.ones(6).long(), one), one


def rated(logp: Tensor) -> tuple[Ratings, Tensor]:
    """Each response alone with its score."""
    return Ratings(scores(logp, np.arange(6)), torch.ones(6, dtype=torch.bool), tensor(MU)), tensor(MU)


@dataclass(frozen=True)
class Optimum:
    """log_ratio: of the six responses at the minimum, as a function of the number that normalization fixes."""

    objective: o.Objective
    view: View
    log_ratio: Callable[[float], Array]
    free: bool = False  # without a reference: log_ratio is the log-policy itself


def tilt(factor: float) -> Callable[[float], Array]:
    return lambda c: REWARD * factor + c


def lambert(c: float) -> Array:
    """u with BETA (exp(u) + u) = REWARD + c, by Newton's method from the right."""
    u = np.minimum((REWARD + c) / BETA, np.log(np.maximum((REWARD + c) / BETA, 1)) + 1)
    for _ in range(200):
        u = u - (np.exp(u) + u - (REWARD + c) / BETA) / (np.exp(u) + 1)
    return u


def forward(c: float) -> Array:
    below = np.minimum((REWARD + c) / BETA, -1e-300)
    return -np.log(-below)


def js(c: float) -> Array:
    below = np.minimum((REWARD + c) / BETA - log(2), -1e-300)  # log sigmoid(u)
    return below - np.log(-np.expm1(below))


def alpha_half(c: float) -> Array:
    return -2 * np.log(np.maximum(1 - 0.5 * (REWARD + c) / BETA, 1e-300))


OPTIMA = {
    "dpo": Optimum(o.DPO(BETA), judged(), tilt(1 / BETA)),
    "dpo from votes": Optimum(o.DPO(BETA), voted, tilt(1 / BETA)),
    "robust": Optimum(o.RobustDPO(BETA, 0.15), judged(0.15), tilt(1 / BETA)),
    "ipo": Optimum(o.IPO(BETA, per_token=False), judged(), lambda c: (BEATS @ MU) / BETA + c),
    "ipo from votes": Optimum(o.IPO(BETA, per_token=False), voted, lambda c: (BEATS @ MU) / BETA + c),
    "ln_dpo": Optimum(o.LengthNormalizedDPO(3.0), judged(), lambda c: TOKENS * (REWARD / 3 + c)),
    "r_dpo": Optimum(o.RDPO(BETA, 0.1), judged(), lambda c: (REWARD - 0.1 * TOKENS) / BETA + c),
    "wpo": Optimum(o.WPO(BETA), judged(), tilt(1 / BETA)),
    "rpo": Optimum(o.RPO(BETA, 0.8), judged(), tilt(0.8 / BETA)),
    "rpo, reverse": Optimum(o.RPO(BETA, 0.8, reverse=True), judged(), tilt(0.8 / BETA)),
    "rebel": Optimum(o.REBEL(BETA, 0.8), judged(), tilt(0.8 / BETA)),
    "f, forward": Optimum(o.FDPO(BETA), judged(), forward),
    "f, js": Optimum(o.FDPO(BETA, "js"), judged(), js),
    "f, alpha": Optimum(o.FDPO(BETA, "alpha", 0.5), judged(), alpha_half),
    "chi_po": Optimum(o.ChiPO(BETA), judged(), lambert),
    "cpo": Optimum(o.CPO(BETA, 0.0), judged(), tilt(1 / BETA), free=True),
    "plackett_luce": Optimum(o.PlackettLuce(BETA), ranked, tilt(1 / BETA)),
    "info_nca": Optimum(o.InfoNCA(BETA, 0.7), scored, tilt(1 / (0.7 * BETA))),
    "dro": Optimum(o.DRO(BETA), rated, tilt(1 / BETA)),
}
ELSEWHERE = {
    o.Hinge, o.EXO, o.SPPO, o.NCA, o.BCO, o.QRPO, o.KTO, o.SimPO, o.APOZero, o.NLL,  # below, two responses or free ones
    o.Reward,  # scores, not log-probabilities: test_reward.py
}  # fmt: skip
NONE = {
    o.DPOPositive: "DPO's only where it lowers no chosen response", o.HyPO: "differs by the reference's order",
    o.CalDPO: "a compromise of two terms", o.APODown: "not finite", o.ODPO: "each pair has its own offset",
    o.SLiC: "a hinge and imitation", o.AlphaPO: "SimPO's at alpha = 0, see test_limits", o.ORPO: "a compromise",
    o.SimPER: "not finite", o.AOT: "an order, not a number", o.BetaDPO: "beta follows the data",
    o.DrDPO: "DPO's as tau grows, see test_limits", o.Sum: "a compromise",
}  # fmt: skip


def minimize(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    x = at.clone().requires_grad_()
    steps = torch.optim.LBFGS([x], max_iter=3000, max_eval=6000, tolerance_grad=1e-13, tolerance_change=0,
                              history_size=30, line_search_fn="strong_wolfe")  # fmt: skip

    def again() -> Tensor:
        steps.zero_grad()
        value = loss(x)
        value.backward()
        return value

    steps.step(again)  # type: ignore
    return x.detach()


def normalized(log_ratio: Callable[[float], Array], base: Array) -> Array:
    """log-probabilities base + log_ratio(c), c such that they are of a distribution, by bisection."""
    low, high = -60.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        with np.errstate(over="ignore"):
            total = np.exp(base + log_ratio(middle)).sum()
        low, high = (middle, high) if total < 1 else (low, middle)
    return base + log_ratio(low)


@pytest.mark.parametrize("name", OPTIMA)
def test_population_optimum(name: str) -> None:
    case = OPTIMA[name]

    def loss(theta: Tensor) -> Tensor:
        view, weight = case.view(theta.log_softmax(0))
        return (weight * o.loss_of(case.objective, view)).sum()  # type: ignore[arg-type]

    found = minimize(loss, tensor(REF)).log_softmax(0).numpy()
    expected = normalized(case.log_ratio, np.zeros(6) if case.free else REF)
    assert np.exp(expected).sum() == pytest.approx(1, abs=1e-9)
    assert float((np.exp(found) * (found - expected)).sum()) == pytest.approx(0, abs=1e-10)


def test_every_objective_has_an_optimum_or_a_reason() -> None:
    known = {type(case.objective) for case in OPTIMA.values()}
    assert known | ELSEWHERE | set(NONE) == set(get_args(o.Single | o.Sum))


def margin_at_minimum(objective: o.Objective, preferred: float) -> float:
    """h of two responses whose log-ratios are free, one preferred with the given probability."""
    one = torch.ones(1, dtype=torch.float64)

    def loss(h: Tensor) -> Tensor:
        pairs = Pairs(Responses(h, one, 0 * one), Responses(0 * h, one, 0 * one), one, one * preferred)
        return values(objective, pairs).sum()

    return float(minimize(loss, torch.zeros(1, dtype=torch.float64) + 0.1))


@pytest.mark.parametrize("p", [0.6, 0.9, 1.0])
def test_two_responses(p: float) -> None:
    smoothed = p * 0.9 + (1 - p) * 0.1
    assert margin_at_minimum(o.DPO(0.4, 0.1), p) == pytest.approx(log(smoothed / (1 - smoothed)) / 0.4, abs=1e-6)
    assert margin_at_minimum(o.IPO(0.3, per_token=False), p) == pytest.approx((2 * p - 1) / 0.6, abs=1e-6)
    gamma = 0.7
    if p < 1:
        q = 2 * p - 1
        w = (q + sqrt(q * q + 4 * p * (1 - p) * np.exp(-2 * gamma))) / (2 * (1 - p) * np.exp(-gamma))
        assert margin_at_minimum(o.SimPO(2.0, gamma), p) == pytest.approx(log(w) / 2, abs=1e-6)
        assert margin_at_minimum(o.SimPO(2.0, 0.0), p) == pytest.approx(log(p / (1 - p)) / 2, abs=1e-6)
    else:
        assert margin_at_minimum(o.EXO(0.4, 0.01), p) == pytest.approx(log(0.99 / 0.01) / 0.4, abs=1e-5)
        hinge = margin_at_minimum(o.Hinge(0.4), p)
        assert hinge >= 1 / 0.4 - 1e-9


def free_slopes(objective: o.Objective, view: Callable[[Tensor], tuple[object, Tensor]], u: Array) -> Tensor:
    """Derivative of the population loss by log-ratios that are not bound to a distribution."""
    x = tensor(u).requires_grad_()
    seen, weight = view(x + tensor(REF))
    return torch.autograd.grad((weight * objective(seen)).sum(), x)[0]  # type: ignore[arg-type]


def test_pointwise_optima() -> None:
    """Objectives of each response by itself are stationary where their formula says."""
    share = np.exp(REWARD / 0.7) / np.exp(REWARD / 0.7).sum()
    assert free_slopes(o.NCA(BETA, 0.7), scored, np.log(6 * share) / BETA).abs().max() < 1e-15
    assert free_slopes(o.QRPO(BETA), rated, REWARD / BETA - o.QRPO(BETA).log_z).abs().max() < 1e-15
    one = torch.ones(1, dtype=torch.float64)
    sides = [Responses(one * at, one, 0 * one) for at in (1 / (2 * BETA), -1 / (2 * BETA))]
    assert o.SPPO(BETA)(Pairs(*sides, one, one)).item() == 0


def test_quantile_constant() -> None:
    """log of the mean of exp(q / beta), q uniform, by the midpoint rule."""
    q = (np.arange(200000) + 0.5) / 200000
    for beta in (0.1, 0.5, 1.0):
        assert o.QRPO(beta).log_z == pytest.approx(log(np.exp(q / beta).mean()), abs=1e-8)
    assert o.QRPO(0.5).log_z == pytest.approx(1.161, abs=1e-3)
    assert o.QRPO(1.0).log_z == pytest.approx(0.541, abs=1e-3)
    assert o.QRPO(1e-3).log_z == pytest.approx(1000 + log(1e-3))


def both_ways(u: float, q: float) -> tuple[Ratings, Tensor]:
    """A response that a share q of judges calls good, and its mirror image, each seen from both sides."""
    x = torch.tensor([u, u, -u, -u], dtype=torch.float64).requires_grad_()
    weight = torch.tensor([q, 1 - q, 1 - q, q], dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    good = torch.tensor([True, False, True, False])
    return Ratings(Responses(x, zero + 1, zero), good, weight, Responses(zero, zero + 1, zero)), x


def test_bco_learns_the_log_odds_of_good() -> None:
    for q in (0.6, 0.9):
        ratings, x = both_ways(log(q / (1 - q)) / BETA, q)
        d = torch.autograd.grad((ratings.weight * o.BCO(BETA)(ratings)).sum(), x)[0]
        assert (d[0] + d[1]).abs() < 1e-15
        assert d[0] < 0 < d[1]


@pytest.mark.parametrize("u", [-3.0, 0.0, 2.0])
def test_kto_and_apo_zero_follow_the_majority(u: float) -> None:
    """The push has the sign of q lambda_D - (1 - q) lambda_U wherever the policy is: no optimum inside."""
    for q, good, bad in ((0.6, 1.0, 1.0), (0.4, 1.0, 1.0), (0.4, 2.0, 1.0), (0.6, 1.0, 2.0)):
        ratings, x = both_ways(u, q)
        found = [o.KTO(BETA, good, bad)(ratings)] + ([o.APOZero(BETA)(ratings)] if good == bad else [])
        for value in found:
            d = torch.autograd.grad((ratings.weight * value).sum(), x, retain_graph=True)[0]
            assert (d[0] + d[1] < 0) == (q * good > (1 - q) * bad)


def test_imitation_finds_the_distribution_of_the_demos() -> None:
    def loss(theta: Tensor) -> Tensor:
        return (tensor(MU) * o.NLL("sum")(Demos(scores(theta.log_softmax(0), np.arange(6)), tensor(MU)))).sum()

    found = minimize(loss, tensor(REF)).softmax(0).numpy()
    assert np.allclose(found, MU, atol=1e-7)

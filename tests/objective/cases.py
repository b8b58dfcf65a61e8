"""One row an objective: its constants, its value and its two derivatives at one worked pair, and how it behaves.

The worked pair has logp -12 and -15.5, reference -13 and -14, 10 and 14 tokens, and scores 1.2 and 0.4. `golden` was
computed outside of this code; where a row's definition is not the table's, `differs` says why, and the number was
derived by hand from the formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import exp, log

import numpy as np
import torch
from making import group
from torch import Tensor

from preftune import objective as o
from preftune.forward.examples import Examples
from preftune.objective.presets import PRESETS
from preftune.objective.responses import Pairs, Rankings, Ratings, Responses

DRIFT = 0.2


def soft(x: float) -> float:
    """-log sigmoid(x)."""
    return log(1 + exp(-x))


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


@dataclass(frozen=True)
class Case:
    """start: value where the policy is the reference, with the worked pair's tokens and scores.

    shift: whether adding a number to both logp, or to both reference logp, changes nothing.
    doubled: whether giving each token twice changes nothing.
    """

    name: str
    objective: o.Objective
    golden: tuple[float, float, float]
    start: float | None = None
    shift: bool = False
    doubled: bool = False
    differs: str = ""


LN2 = log(2)
LOG_Z = log(0.1 * (exp(10) - 1))  # of exp(s / 0.1), s uniform
OFF = (1.2 - 0.1 * LOG_Z - 0.1 * 1.0, 0.4 - 0.1 * LOG_Z + 0.1 * 1.5)  # residuals of QRPO
CASES = [
    Case("dpo", o.DPO(), (0.575939419879, -0.043782350, 0.043782350), LN2, shift=True),
    Case("cdpo", o.DPO(flip=0.1), (0.600939419879, -0.033782350, 0.033782350), LN2, shift=True),
    Case("robust", o.RobustDPO(), (0.544689419879, -0.056282350, 0.056282350), LN2, shift=True),
    Case("hinge", o.Hinge(), (0.75, -0.1, 0.1), 1, shift=True),
    Case("ln_dpo", o.LengthNormalizedDPO(), (0.303781334862, -0.130988886, 0.093563490), LN2, doubled=True),
    Case("ipo_sum", o.IPO(per_token=False), (6.25, -5.0, 5.0), 25, shift=True),
    Case("ipo", o.IPO(), (22.971479591837, -0.958571429, 0.684693878), 25, doubled=True),
    Case("slic", o.SLiC(), (1.2, -0.1, 0.0)),
    Case("exo", o.EXO(), (2.339544750388, -0.163845423, 0.163845423), -LN2 - log(1e-3 * (1 - 1e-3)) / 2, shift=True),
    Case("nca", o.NCA(), (1.327073514005, -0.021253122, 0.023128508), 2 * LN2),
    Case("bco", o.BCO(), (2 * soft(0.125), -0.1 * sigmoid(-0.125), 0.1 * sigmoid(-0.125)), 2 * LN2,
         differs="the table has delta = 0; ours is the middle of 0.1 and -0.15, so both are 0.125 from it"),
    Case("sppo", o.SPPO(), (248751.625, -499.0, 498.5), 250000),
    Case("apo_zero", o.APOZero(), (0.937590967177, -0.024937604, 0.024859901), 1),
    Case("apo_down", o.APODown(), (0.962802686593, 0.000324196, 0.024613408), 1),
    Case("dpo_positive", o.DPOPositive(), (0.386871006115, -0.096246390, 0.096246390), LN2, shift=True),
    Case("r_dpo", o.RDPO(), (0.668459648013, -0.048750260, 0.048750260), soft(-0.2), shift=True),
    Case("odpo", o.ODPO(), (0.484301319924, -0.038387248, 0.038387248), soft(-log(0.8)), shift=True),
    Case("rpo", o.RPO(), (0.034324718551, -0.012779798, 0.012779798), shift=True),
    Case("rebel", o.REBEL(), (0.3025, -0.11, 0.11), 0.64, shift=True),
    Case("cal_dpo", o.CalDPO(), (248751.703889734286, -499.075858180, 498.575858180), 250000 + LN2),
    Case("f_forward_kl", o.FDPO(), (0.508463479861, -0.014662977, 0.178631628), LN2),
    Case("f_js", o.FDPO(divergence="js"), (0.626146375610, -0.012515238, 0.038045978), LN2),
    Case("f_alpha", o.FDPO(divergence="alpha"), (0.553464717667, -0.025780325, 0.089982175), LN2),
    Case("chi_po", o.ChiPO(), (0.474260056040, -0.140422629, 0.046192075), LN2),
    Case("cpo", o.CPO(), (1.733382155419, -0.141338242, 0.041338242)),
    Case("simpo", o.SimPO(), (1.452321740755, -0.153194738, 0.109424813), doubled=True),
    Case("alpha_po", o.AlphaPO(), (1.011686860876, -0.214760812, 0.149880511), doubled=True),
    Case("orpo", o.ORPO(), (1.276329812667, -0.107639797, 0.005695882), doubled=True),
    Case("simper", o.SimPER(), (0.029307692615, -0.030119421, 0.023607279), doubled=True),
    Case("hypo", o.HyPO(), (0.575939419879, -0.043782350, 0.043782350), LN2, shift=True),
    Case("kto", o.KTO(), ((0.480010659844 + 0.457602059226) / 2, -0.05 * sigmoid(0.08) * sigmoid(-0.08),
         0.05 * sigmoid(0.17) * sigmoid(-0.17)), (sigmoid(0.02) + sigmoid(-0.02)) / 2,
         differs="the table prints both halves; a pair is their mean. A drift of 0.2 is given"),
    Case("irpo", PRESETS["irpo"].objective, (1.775939419879, -0.143782350, 0.043782350)),
    Case("mpo", PRESETS["mpo"].objective, (0.8 * 0.575939419879 + 0.4 * soft(0.125) + 1.2,
         -0.8 * 0.043782350 - 0.02 * sigmoid(-0.125) - 0.1, 0.8 * 0.043782350 + 0.02 * sigmoid(-0.125)),
         differs="its BCO part, as above"),
    Case("nll", o.NLL(), (1.2, -0.1, 0.0), doubled=True),
    Case("nll_token", o.NLL("token"), (1.2, -0.1, 0.0), doubled=True, differs="not in the table; one response"),
    Case("nll_sum", o.NLL("sum"), (12.0, -1.0, 0.0), differs="not in the table"),
    Case("aot", o.AOT(), (soft(0.025), -0.01 * sigmoid(-0.025), 0.01 * sigmoid(-0.025)), LN2, shift=True),
    Case("aot_unpaired", o.AOT(paired=False), (soft(0.025), -0.01 * sigmoid(-0.025), 0.01 * sigmoid(-0.025)), LN2),
    Case("beta_dpo", o.BetaDPO(), (0.575939419879, -0.043782350, 0.043782350), LN2, shift=True,
         differs="not in the table; in the first step the usual margin is that step's, so beta is as given"),
    Case("dr_dpo", o.DrDPO(), (0.575939419879, -0.043782350, 0.043782350), LN2, shift=True),
    Case("wpo", o.WPO(), (exp(-0.5) * 0.575939419879, -exp(-0.5) * 0.043782350, exp(-0.5) * 0.043782350),
         exp(-0.5) * LN2, shift=True),
    Case("plackett_luce", o.PlackettLuce(), (0.575939419879, -0.043782350, 0.043782350), LN2, shift=True),
    Case("info_nca", o.InfoNCA(), (0.575939419879, -0.043782350, 0.043782350), LN2, shift=True),
    Case("qrpo", o.QRPO(), ((OFF[0] ** 2 + OFF[1] ** 2) / 2, -0.1 * OFF[0], -0.1 * OFF[1])),
    Case("dro", o.DRO(), (0.36125, 0.425, -0.425), 0.08),
    Case("reward", o.Reward(), (soft(3.5), -sigmoid(-3.5), sigmoid(-3.5)), soft(1), shift=True,
         differs="not in the table; its logp are a reward model's scores"),
    Case("reward, margin", o.Reward(margin=0.5), (soft(3.1), -sigmoid(-3.1), sigmoid(-3.1)), soft(0.6), shift=True,
         differs="not in the table; scores 0.8 apart ask for 0.4"),
]  # fmt: skip


def pairs_of(
    logp: tuple[list[float], list[float]] = ([-12.0], [-15.5]),
    reference: tuple[list[float], list[float]] | None = None,
    tokens: tuple[float, float] = (10, 14),
    dtype: torch.dtype = torch.float64,
    preferred: float = 1.0,
) -> Pairs:
    """Pairs from plain numbers; the worked pair where nothing is given."""
    reference = reference or ([-13.0] * len(logp[0]), [-14.0] * len(logp[0]))
    sides = []
    for own, ref, count, score, sharp in zip(logp, reference, tokens, (1.2, 0.4), (-0.2, -0.3), strict=True):
        values = torch.tensor(own, dtype=dtype)
        like = torch.ones_like(values)
        sides.append(Responses(values, like * count, torch.tensor(ref, dtype=dtype), like * score, like * sharp))
    one = torch.ones_like(sides[0].logp)
    return Pairs(*sides, one, one * preferred)


def random_pairs(count: int, seed: int = 0, preferred: float = 1.0) -> Pairs:
    """Pairs with log-ratios, tokens, scores and sharpness drawn at random, float64."""
    draw = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(count, generator=draw, dtype=torch.float64)

    sides = []
    for better in (0.5, 0.0):
        tokens = torch.randint(5, 30, (count,), generator=draw).double()
        ref = -tokens * (1 + 0.2 * torch.rand(count, generator=draw, dtype=torch.float64))
        sides.append(Responses(ref + normal(1.0), tokens, ref, better + normal(0.1), -normal(0.3).abs()))
    one = torch.ones(count, dtype=torch.float64)
    return Pairs(*sides, one, one * preferred)


def examples_of(pairs: Pairs, mismatched: Responses | None = None) -> Examples:
    """The pairs as rows, so that objectives of every kind see them; chosen and rejected stand side by side."""
    columns = {}
    for field in fields(Responses):
        sides = [getattr(side, field.name) for side in (pairs.chosen, pairs.rejected)]
        columns[field.name] = None if any(side is None for side in sides) else torch.stack(sides, 1).reshape(-1)
    scores = (0.0, 0.0) if columns["score"] is not None else None  # the rows only say that there are scores
    rows = [group([1], [2], [3], weight=float(weight), preferred=float(preferred), scores=scores)
            for weight, preferred in zip(pairs.weight, pairs.preferred, strict=True)]  # fmt: skip
    responses = Responses(**columns)
    return Examples(rows, responses, mismatched=mismatched)


def ratings_of(pairs: Pairs) -> Ratings:
    """Chosen responses as good, rejected as bad, each with half of its pair's weight; no mismatched ones."""
    return examples_of(pairs).ratings


def ratings(u: list[float], good: list[bool], away: list[float] | None = None) -> Ratings:
    """Responses of these log-ratios; away: log-ratios of mismatched ones."""
    x = torch.tensor(u, dtype=torch.float64)
    mismatched = None
    if away is not None:
        other = torch.tensor(away, dtype=torch.float64)
        mismatched = Responses(other, torch.ones_like(other), torch.zeros_like(other))
    one = torch.ones_like(x)
    return Ratings(Responses(x, one, 0 * one), torch.tensor(good, dtype=torch.bool), one, mismatched)


def rankings(
    groups: list[list[float]], ranks: list[list[int]] | None = None, score: list[list[float]] | None = None
) -> Rankings:
    """Groups of responses of these log-ratios, the best first where no ranks are given."""
    x = torch.tensor([u for group in groups for u in group], dtype=torch.float64)
    scores = None if score is None else torch.tensor([s for group in score for s in group], dtype=torch.float64)
    owner = torch.tensor([i for i, group in enumerate(groups) for _ in group], dtype=torch.long)
    ranks = ranks or [list(range(1, len(group) + 1)) for group in groups]
    place = torch.tensor([rank for group in ranks for rank in group], dtype=torch.long)
    one = torch.ones_like(x)
    return Rankings(Responses(x, one, 0 * one, scores), owner, place, torch.ones(len(groups), dtype=torch.float64))


def values(objective: o.Objective, pairs: Pairs, mismatched: Responses | None = None) -> Tensor:
    """(pairs,) the loss of each pair by an objective of any kind; KTO has a drift of 0.2 nats unless given other."""
    if mismatched is None and pairs.chosen.reference is not None:
        mismatched = replace(pairs.chosen, logp=pairs.chosen.ref_logp + DRIFT)
    total = torch.zeros_like(pairs.weight)
    for factor, part in o.parts(objective):
        examples = pairs if part.kind == "pairs" else getattr(examples_of(pairs, mismatched), part.kind)
        each = o.loss_of(part, examples)
        total = total + factor * (each.view(-1, 2).mean(1) if part.kind == "ratings" else each)
    return total


def ones(count: int) -> np.ndarray:
    """The weights of a response's tokens where its row gives none."""
    return np.ones(count, np.float32)


def leaves(pairs: Pairs) -> Pairs:
    """The same pairs, their logp being leaves that take a gradient."""
    sides = [replace(s, logp=s.logp.detach().clone().requires_grad_()) for s in (pairs.chosen, pairs.rejected)]
    return replace(pairs, chosen=sides[0], rejected=sides[1])


def slopes(objective: o.Objective, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Values, and the derivatives of their weighted sum by logp of chosen and of rejected."""
    pairs = leaves(pairs)
    losses = values(objective, pairs)
    inputs = [pairs.chosen.logp, pairs.rejected.logp]
    d = torch.autograd.grad((losses * pairs.weight).sum(), inputs, allow_unused=True, materialize_grads=True)
    return losses.detach(), d[0], d[1]


def changed(pairs: Pairs, **fields: Callable[[Tensor], Tensor | None]) -> Pairs:
    """The pairs with the same fields of both responses replaced by functions of them."""

    def side(scores: Responses) -> Responses:
        return replace(scores, **{name: f(getattr(scores, name)) for name, f in fields.items()})

    return replace(pairs, chosen=side(pairs.chosen), rejected=side(pairs.rejected))

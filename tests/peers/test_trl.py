"""Equal to TRL's functions where those are the paper's, to as many digits as double or single precision gives."""

from __future__ import annotations

import pytest

pytest.importorskip("trl", reason="TRL is installed by `make test-peers` only")

from dataclasses import replace

import torch
from objective.cases import ones, random_pairs, ratings_of, slopes
from peers.theirs import trl_cpo, trl_dpo, trl_grpo, trl_kto, trl_orpo, trl_reward

from preftune import objective as o
from preftune.objective.responses import Draws, Pairs, Responses, Rollouts
from preftune.tokens.aggregate import LD

SAME = {
    "sigmoid": (o.DPO(), {}),
    "hinge": (o.Hinge(), {}),
    "ipo": (o.IPO(), {}),
    "nca_pair": (o.NCA(beta=0.1), {}),
    "robust": (o.RobustDPO(), {"label_smoothing": 0.1}),
    "apo_zero": (o.APOZero(), {}),
    "apo_down": (o.APODown(), {}),
    "sigmoid_norm": (o.LengthNormalizedDPO(), {"beta": 5.0}),
    "aot": (o.AOT(), {"beta": 0.01}),
    "aot_unpaired": (o.AOT(paired=False), {"beta": 0.01}),
}
DIVERGENCES = {"forward_kl": "forward_kl", "js_divergence": "js"}


def mean_slopes(objective: o.Objective, pairs: Pairs) -> tuple[torch.Tensor, ...]:
    """Ours, as the mean over the batch that theirs is."""
    value, chosen, rejected = slopes(objective, pairs)
    return value.mean(), chosen / len(chosen), rejected / len(rejected)


def check(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...], digits: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=digits, atol=digits * 1e-2), (a - b).abs().max()


def single(pairs: Pairs) -> Pairs:
    """The same in fp32."""

    def side(s: Responses) -> Responses:
        return Responses(*(None if x is None else x.float() for x in (s.logp, s.tokens, s.reference, s.score)))

    return Pairs(side(pairs.chosen), side(pairs.rejected), pairs.weight.float(), pairs.preferred.float())


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("seed", range(3))
def test_dpo_trainer(kind: str, seed: int) -> None:
    objective, fields = SAME[kind]
    pairs = random_pairs(6, seed)
    check(mean_slopes(objective, pairs), trl_dpo(pairs, kind, **fields), 1e-12)


def test_dpo_trainer_exo() -> None:
    """Their epsilon passes through fp32, which rounds the label itself: 1e-8, not 1e-12."""
    pairs = random_pairs(6)
    check(mean_slopes(o.EXO(), pairs), trl_dpo(pairs, "exo_pair", label_smoothing=1e-3), 3e-8)


@pytest.mark.parametrize("theirs", DIVERGENCES)
def test_dpo_trainer_divergences(theirs: str) -> None:
    pairs = random_pairs(6)
    ours = o.FDPO(divergence=DIVERGENCES[theirs])
    check(mean_slopes(ours, pairs), trl_dpo(pairs, f_divergence_type=theirs), 1e-12)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_dpo_trainer_alpha_is_one_minus_the_papers(alpha: float) -> None:
    """Their exponent exists in fp32 only."""
    pairs = single(random_pairs(6))
    kind = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1 - alpha}
    check(mean_slopes(o.FDPO(divergence="alpha", alpha=alpha), pairs), trl_dpo(pairs, **kind), 3e-6)


def test_dpo_trainer_weighting() -> None:
    """WPO, here where no weight passes 1."""
    pairs = random_pairs(6)
    check(mean_slopes(o.WPO(), pairs), trl_dpo(pairs, use_weighting=True), 1e-12)


def test_dpo_trainer_discounts_the_tail() -> None:
    """LD-DPO: their policy sums discount as our aggregate does. The reference is given already discounted."""
    pairs = random_pairs(6)
    sides = []
    for side, other in ((pairs.chosen, pairs.rejected), (pairs.rejected, pairs.chosen)):
        counts = zip(side.tokens, other.tokens, strict=True)
        share = side.logp.new_tensor([LD(alpha=0.5)(ones(int(n)), int(m)).mean(dtype=float) for n, m in counts])
        sides.append(replace(side, logp=side.logp * share))
    ours = mean_slopes(o.DPO(), replace(pairs, chosen=sides[0], rejected=sides[1]))
    check(ours, trl_dpo(pairs, ld_alpha=0.5), 1e-12)


def test_dpo_trainer_mixes_losses() -> None:
    pairs = random_pairs(6)
    ours = mean_slopes(o.Sum(parts=(o.DPO(), o.APOZero()), weights=(0.8, 0.2)), pairs)
    check(ours, trl_dpo(pairs, loss_types=["sigmoid", "apo_zero"], loss_weights=[0.8, 0.2]), 1e-12)


def test_kto_trainer() -> None:
    """With the batch being the whole step and the same mismatched responses: drift, values and derivatives."""
    ratings = ratings_of(random_pairs(5))
    ratings = replace(ratings, mismatched=random_pairs(10, seed=8).chosen)
    objective = o.KTO(good_weight=1.0, bad_weight=1.0)
    leaf = ratings.responses.logp.clone().requires_grad_()
    value = objective(replace(ratings, responses=replace(ratings.responses, logp=leaf))).mean()
    check((value.detach(), torch.autograd.grad(value, leaf)[0]), trl_kto(ratings), 1e-12)


def test_kto_trainer_apo_zero_is_half_of_ours() -> None:
    """A response here, a pair of them there: ours counts a rating twice, because a pair's two have half its weight."""
    ratings = ratings_of(random_pairs(5))
    leaf = ratings.responses.logp.clone().requires_grad_()
    value = o.APOZero()(replace(ratings, responses=replace(ratings.responses, logp=leaf))).mean() / 2
    check((value.detach(), torch.autograd.grad(value, leaf)[0]), trl_kto(ratings, "apo_zero_unpaired"), 1e-12)


def test_cpo_trainer() -> None:
    pairs = random_pairs(6)
    theirs = trl_cpo(pairs.chosen.logp, pairs.rejected.logp)
    check(mean_slopes(o.CPO(nll_weight=0.0), pairs), theirs, 1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.25, -0.5])
def test_cpo_trainer_simpo_and_alpha_po(alpha: float) -> None:
    """On mean log-probabilities, which is what it takes under the name simpo. gamma is theirs, not gamma / beta."""
    pairs = random_pairs(6)
    chosen, rejected = pairs.chosen, pairs.rejected
    ours = o.SimPO(beta=2.0, gamma=1.0) if alpha == 0 else o.AlphaPO(beta=2.0, gamma=1.0, alpha=alpha)
    value, a, b = trl_cpo(chosen.mean_logp, rejected.mean_logp, "simpo", beta=2.0, simpo_gamma=1.0, alpha=alpha)
    check(mean_slopes(ours, pairs), (value, a / chosen.tokens, b / rejected.tokens), 1e-12)


def test_orpo_trainer() -> None:
    """The odds ratio, away from certainty. It casts to fp32."""
    pairs = random_pairs(6)
    chosen, rejected = pairs.chosen, pairs.rejected
    value, a, b = trl_orpo(chosen.mean_logp, rejected.mean_logp)
    only = o.Sum(parts=(o.ORPO(odds_weight=0.1),)), o.Sum(parts=(o.ORPO(odds_weight=0.0),))
    full, imitation = (mean_slopes(part, pairs) for part in only)
    odds = tuple(x - y for x, y in zip(full, imitation, strict=True))
    check(odds, (value.double(), a / chosen.tokens, b / rejected.tokens), 1e-5)


@pytest.mark.parametrize("center", [None, 0.01])
@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_reward_trainer(center: float | None, margin: float) -> None:
    pairs = random_pairs(6)
    better_by = pairs.chosen.score - pairs.rejected.score
    theirs = trl_reward(pairs.chosen.logp, pairs.rejected.logp, center, margin * better_by if margin else None)
    check(mean_slopes(o.Reward(margin=margin, center=center or 0.0), pairs), theirs, 1e-12)


ONLINE = {
    "dapo": (o.GRPO(beta=0, clip_high=0.28), {"kind": "dapo", "epsilon_high": 0.28}),
    "grpo": (o.GRPO(beta=0, norm="sequence"), {"kind": "grpo"}),
    "dr_grpo": (o.GRPO(beta=0, norm="sum"), {"kind": "dr_grpo"}),
    "gspo": (o.GSPO(beta=0), {"kind": "grpo", "level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4}),
    "wide": (o.GSPO(beta=0, clip=0.1, clip_high=0.2), {"kind": "grpo", "level": "sequence", "epsilon_low": 0.1}),
    "luspo": (o.GSPO(beta=0, norm="sum", clip=0.1, clip_high=0.1),
              {"kind": "luspo", "level": "sequence", "epsilon_low": 0.1, "epsilon_high": 0.1}),
    "cispo": (o.CISPO(beta=0, clip_high=0.3), {"kind": "cispo", "epsilon_high": 1.3}),
    "sapo": (o.SAPO(beta=0), {"kind": "sapo"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ONLINE)
def test_grpo_trainer(name: str) -> None:
    """The surrogates of drawn tokens, whose ratios here are from 0.5 to 2; a constant length of theirs is 1."""
    objective, fields = ONLINE[name]
    generator = torch.Generator().manual_seed(3)
    response = torch.arange(4).repeat_interleave(torch.tensor([3, 1, 5, 2]))
    sampled = -3 * torch.rand(11, generator=generator, dtype=torch.float64)
    token_logp = sampled + 1.4 * (torch.rand(11, generator=generator, dtype=torch.float64) - 0.5)
    score = torch.tensor([1.0, 0.0, 0.3, 2.0], dtype=torch.float64)
    group = torch.tensor([0, 0, 1, 1])
    draws = Draws(sampled, None, None, response, group, score, torch.ones(4, dtype=torch.bool))
    advantage = objective.advantages(draws).advantage
    leaf = token_logp.clone().requires_grad_()
    value = objective(Rollouts(leaf, sampled, advantage, response, torch.ones(4, dtype=torch.float64))).mean()
    theirs = trl_grpo(token_logp, sampled, torch.tensor([0.5, -0.5, -0.85, 0.85], dtype=torch.float64), response,
                      **fields)  # fmt: skip
    check((value.detach(), torch.autograd.grad(value, leaf)[0]), theirs, 1e-12)

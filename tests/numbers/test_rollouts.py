"""Online objectives against the gradient of E score - beta KL, summed over every response of a world.

Two oracles: the gradient is 0 at the optimum, and equal to the true one at a policy in between. The first alone is
weak, since every advantage is 0 there; the table of planted slips says which oracle sees what.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp
from pathlib import Path

import exact_world as exact
import pytest
import torch
from exact_world import BETA, BETWEEN, OPTIMUM, WORLD, Advantage, Correct, Extra
from torch import Tensor

from preftune import objective as o
from preftune.objective import advantage as a
from preftune.objective.labels import labels_of_scores
from preftune.objective.presets import PRESETS
from preftune.objective.rankings import ranking_pairs
from preftune.objective.responses import Advantages, Draws, Rollouts, Values, sum_by
from preftune.tradeoff.learn import Recipe, Schedule, learn_online, pair_votes

AT_REFERENCE = exact.true_gradient(WORLD.reference).norm()
AT_BETWEEN = exact.true_gradient(BETWEEN)


def ppo(lam: float) -> Advantage:
    return lambda draws, weight: o.PPO(beta=BETA, lam=lam).advantages(draws).advantage


def to_go(draws: Draws, weight: Tensor) -> Tensor:
    return a.return_to_go(a.token_rewards(draws, BETA), draws.response)


def same(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).norm()) <= 1e-12 * float(AT_REFERENCE)


@pytest.mark.parametrize("policy", [BETWEEN, WORLD.reference], ids=["between", "reference"])
def test_the_expected_gradient_is_that_of_score_minus_kl(policy: Tensor) -> None:
    """PPO for every lambda with exact values, and for lambda 1 with any; returns without a value model."""
    true, values = exact.true_gradient(policy), exact.exact_values(policy)
    for lam in (0.0, 0.5, 0.95, 1.0):
        assert same(exact.surrogate_gradient(ppo(lam), policy, values=values), true), lam
    assert same(exact.surrogate_gradient(ppo(1.0), policy, values=0 * values + 3), true)
    assert not same(exact.surrogate_gradient(ppo(0.95), policy, values=0 * values + 3), true)
    assert same(exact.surrogate_gradient(to_go, policy), true)


@pytest.mark.parametrize("size", [2, 3])
def test_the_gradient_of_groups_is_unbiased(size: int) -> None:
    """RLOO, and GRPO times K / (K - 1) without its mean over tokens, over all groups of K responses that there are."""
    world = exact.small_world()
    policy = world.reference + 0.5 * torch.randn(world.reference.shape, generator=torch.Generator().manual_seed(1))
    true = exact.true_gradient(policy, world)
    members, group, weight = exact.every_group(world, policy, size)
    draws = world.draws(members, policy, world.reward, group=group)
    mean_tokens = len(draws.sampled) / len(group)
    factors = {o.RLOO(beta=BETA): 1.0, o.GRPO(beta=BETA, clip=None): mean_tokens * size / (size - 1)}
    for objective, factor in factors.items():
        advantage = factor * objective.advantages(draws).advantage

        def loss(leaf: Tensor, objective: o.RLOO | o.GRPO = objective, advantage: Tensor = advantage) -> Tensor:
            rollouts = Rollouts(members.logp(leaf), draws.sampled, advantage, draws.response, weight)
            return (weight * objective(rollouts)).sum()

        assert float((exact.derivative(loss, policy) - true).abs().max()) < 1e-12
        assert float(true.norm()) > 0.1


def test_the_gradient_is_zero_at_the_optimum() -> None:
    values = exact.exact_values(OPTIMUM)
    for lam in (0.0, 0.5, 0.95, 1.0):
        assert float(exact.surrogate_gradient(ppo(lam), OPTIMUM, values=values).norm() / AT_REFERENCE) < 1e-12
    assert float(exact.surrogate_gradient(to_go, OPTIMUM).norm() / AT_REFERENCE) < 1e-12


def score_alone(draws: Draws, weight: Tensor) -> Tensor:
    """The score relative to its mean over a prompt's responses, at every token."""
    return centered(draws.score, draws, weight)[draws.response]


def whole_reward(draws: Draws, weight: Tensor) -> Tensor:
    return centered(a.response_rewards(draws, BETA), draws, weight)[draws.response]


def centered(x: Tensor, draws: Draws, weight: Tensor) -> Tensor:
    mass = sum_by(draws.group, weight, len(WORLD.reward))
    return x - (sum_by(draws.group, weight * x, len(mass)) / mass)[draws.group]


def scaled_score(draws: Draws, weight: Tensor) -> Tensor:
    return scaled(draws.score, draws, weight)[draws.response]


def scaled(x: Tensor, draws: Draws, weight: Tensor) -> Tensor:
    mass = sum_by(draws.group, weight, len(WORLD.reward))
    x = centered(x, draws, weight)
    return x / (sum_by(draws.group, weight * x**2, len(mass)) / mass).sqrt()[draws.group]


def late_values(lam: float) -> Advantage:
    """V read at the row of a token itself, which is that of the state after it."""

    def advantage(draws: Draws, weight: Tensor) -> Tensor:
        assert draws.value is not None
        late = torch.where(a.is_last(draws.response), 0.0, draws.value.roll(-1))
        return a.gae(a.token_rewards(draws, BETA), late, draws.response, lam)

    return advantage


def early_score(draws: Draws, weight: Tensor) -> Tensor:
    """The score at the token before the last one."""
    assert draws.value is not None
    last, score = a.is_last(draws.response), draws.score[draws.response]
    early = torch.cat([last[1:] & ~last[:-1], last[:1] & False])
    first = torch.cat([last[:1] | True, last[:-1]])  # a response of one token keeps its score
    rewards = a.token_rewards(draws, BETA) - torch.where(last & ~first, score, 0.0) + torch.where(early, score, 0.0)
    return a.gae(rewards, draws.value, draws.response, 0.95)


def without_end(draws: Draws, weight: Tensor) -> Tensor:
    return whole_reward(draws, weight) * ~(a.is_last(draws.response) & draws.ended[draws.response])


def without_cut(draws: Draws, weight: Tensor) -> Tensor:
    return whole_reward(draws, weight) * draws.ended[draws.response]


def token_mean(draws: Draws, weight: Tensor) -> Tensor:
    return whole_reward(draws, weight) / draws.sum(torch.ones_like(draws.sampled))[draws.response]


def present_kl(draws: Draws, weight: Tensor) -> Tensor:
    return score_alone(draws, weight) - BETA * (draws.sampled - draws.ref_logp)


def k_loss(kind: str) -> Extra:
    """A KL loss a token, of log pi - log pi_ref under the present policy."""

    def extra(token_logp: Tensor, draws: Draws) -> Tensor:
        d = token_logp - draws.ref_logp
        k3 = (-d).exp() - 1 + d
        by_kind = {"k1": d, "k2": d**2 / 2, "k3": k3, "k3 x ratio": k3 * (token_logp - draws.sampled).exp()}
        return BETA * by_kind[kind]

    return extra


def response_k_loss(kind: str) -> Extra:
    """A KL loss of a whole response, spread over its tokens."""

    def extra(token_logp: Tensor, draws: Draws) -> Tensor:
        d = draws.sum(token_logp - draws.ref_logp)
        loss = d**2 / 2 if kind == "k2" else (-d).exp() - 1 + d
        return BETA * (loss / draws.sum(torch.ones_like(token_logp)))[draws.response]

    return extra


def cut_at(cut: float) -> Correct:
    """Each token times its ratio to the sampler, cut from above."""
    return lambda advantage, draws, sampler: a.corrected(Advantages(advantage), draws.sampled, sampler, cut).advantage


def ratio_of_the_response(advantage: Tensor, draws: Draws, sampler: Tensor) -> Tensor:
    return advantage * draws.sum(draws.sampled - sampler).exp()[draws.response]


@dataclass(frozen=True)
class Variant:
    """A formula and what the oracles say of it: size of its gradient at the optimum over the true one at the reference
    (0: none), and cosine and size against the true one in between."""

    advantage: Advantage
    at_optimum: float
    cosine: float
    size: float
    extra: Extra | None = None
    valued: bool = False
    temperature: float = 1.0
    correct: Correct | None = None


VARIANTS = {
    "PPO": Variant(ppo(0.95), 0, 1, 1, valued=True),
    "whole reward": Variant(whole_reward, 0, 1, 1),
    "V one token late": Variant(late_values(0.95), 2.27, -0.246, 1.649, valued=True),
    "V one token late, lambda 1": Variant(late_values(1.0), 2.17, -0.220, 1.562, valued=True),
    "score one token early": Variant(early_score, 1.69, 0.450, 1.616, valued=True),
    "end token left out": Variant(without_end, 0, 0.917, 0.913),
    "cut responses left out": Variant(without_cut, 0, 0.949, 0.781),
    "mean over a response's tokens": Variant(token_mean, 0, 0.909, 0.398),
    "k1 as a loss": Variant(score_alone, 1.25, 0.961, 1.664, k_loss("k1")),
    "k2 as a loss": Variant(score_alone, 0.362, 0.988, 1.021, k_loss("k2")),
    "k3 as a loss": Variant(score_alone, 0.795, 0.958, 1.057, k_loss("k3")),
    "k3 x ratio as a loss": Variant(score_alone, 0.362, 0.988, 1.021, k_loss("k3 x ratio")),
    "KL of the present token only": Variant(present_kl, 0.362, 0.988, 1.021),
    "k2 of the response as a loss": Variant(score_alone, 0, 1, 1, response_k_loss("k2")),
    "k3 of the response as a loss": Variant(score_alone, 0.977, 0.949, 1.145, response_k_loss("k3")),
    "group std, k3 x ratio as a loss": Variant(scaled_score, 0.319, 0.986, 1.088, k_loss("k3 x ratio")),
    "drawn at another temperature": Variant(whole_reward, 0, 0.938, 1.041, temperature=0.7),
    "the same, token ratio cut at 2": Variant(whole_reward, 0, 0.975, 1.050, temperature=0.7, correct=cut_at(2.0)),
    "the same, token ratio": Variant(whole_reward, 0, 0.975, 1.058, temperature=0.7, correct=cut_at(1e9)),
    "the same, ratio of the response": Variant(whole_reward, 0, 1, 1, temperature=0.7, correct=ratio_of_the_response),
}
RIGHT = {"PPO", "whole reward", "k2 of the response as a loss", "the same, ratio of the response"}
BLIND = {name for name, variant in VARIANTS.items() if variant.at_optimum == 0} - RIGHT


def gradient_of(variant: Variant, policy: Tensor) -> Tensor:
    values = exact.exact_values(policy) if variant.valued else None
    return exact.surrogate_gradient(
        variant.advantage, policy, extra=variant.extra, values=values, temperature=variant.temperature,
        correct=variant.correct,
    )  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_what_the_two_oracles_see(name: str) -> None:
    """The figures of docs/trade-off.md; a right formula passes both oracles, a wrong one fails one of them by far."""
    variant = VARIANTS[name]
    at_optimum = float(gradient_of(variant, OPTIMUM).norm() / AT_REFERENCE)
    gradient = gradient_of(variant, BETWEEN)
    cosine = float((gradient * AT_BETWEEN).sum() / gradient.norm() / AT_BETWEEN.norm())
    size = float(gradient.norm() / AT_BETWEEN.norm())
    assert at_optimum == pytest.approx(variant.at_optimum, rel=0.01, abs=1e-12)
    assert (cosine, size) == pytest.approx((variant.cosine, variant.size), abs=6e-4)
    passes = at_optimum < 1e-12 and same(gradient, AT_BETWEEN)
    assert passes == (name in RIGHT)
    if not passes:
        assert at_optimum > 0.1 or cosine < 0.98


def test_the_page_has_these_figures() -> None:
    page = (Path(__file__).parents[2] / "docs" / "trade-off.md").read_text().partition("## Why the KL")[2]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    written = {name: [float(cell) for cell in cells] for name, *cells in rows if name in VARIANTS}
    assert len(written) == 14
    for name, cells in written.items():
        variant = VARIANTS[name]
        assert cells == pytest.approx([variant.at_optimum, variant.cosine, variant.size], abs=5.1e-4), name


def test_the_zero_alone_is_blind() -> None:
    """Six slips have no gradient at the optimum, because every advantage is 0 there."""
    assert len(BLIND) == 6


def test_a_token_kl_loss_forgets_the_kl_to_come() -> None:
    """k2 as a loss, k3 times the ratio, and the KL of the present token in the reward are one gradient."""
    gradients = [gradient_of(VARIANTS[name], BETWEEN) for name in VARIANTS if "k2 as" in name or "present" in name]
    gradients.append(gradient_of(VARIANTS["k3 x ratio as a loss"], BETWEEN))
    assert all(same(one, other) for one, other in pairwise(gradients))
    assert len(gradients) == 3


def test_group_scaling_changes_the_length_alone_while_the_kl_is_in_the_reward() -> None:
    """With the std of the group each prompt's gradient is the true one, times a number; so its optimum stays."""

    def scaled_reward(draws: Draws, weight: Tensor) -> Tensor:
        return scaled(a.response_rewards(draws, BETA), draws, weight)[draws.response]

    gradient = exact.surrogate_gradient(scaled_reward, BETWEEN)
    for scaled_prompt, true in zip(gradient, AT_BETWEEN, strict=True):
        cosine = (scaled_prompt * true).sum() / scaled_prompt.norm() / true.norm()
        assert float(cosine) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("name", "distance"), [("k2 as a loss", 0.13), ("group std, k3 x ratio as a loss", 0.2)])
def test_a_wrong_formula_has_another_optimum(name: str, distance: float) -> None:
    leaf = WORLD.reference.clone().requires_grad_()
    variant = VARIANTS[name]
    optimizer = torch.optim.Adam([leaf], lr=0.2)
    for step in range(250):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 250)
        leaf.grad = gradient_of(variant, leaf.detach())
        optimizer.step()
    assert exact.kl_to_optimum(leaf.detach()) > distance


def draws_of(tokens: tuple[int, ...], seed: int = 0, groups: int = 2) -> Draws:
    """Random draws with responses of these lengths."""
    generator = torch.Generator().manual_seed(seed)

    def normal(count: int) -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    response = torch.arange(len(tokens)).repeat_interleave(torch.tensor(tokens))
    members = len(response)
    group = torch.arange(len(tokens)) * groups // len(tokens)
    sampled, reference, value, score = (
        -normal(members).abs(),
        -normal(members).abs(),
        normal(members),
        normal(len(tokens)),
    )
    return Draws(sampled, reference, value, response, group, score, torch.arange(len(tokens)) % 3 > 0)


def test_advantages_by_hand() -> None:
    """One response of four tokens, and the recursion as a double sum over ragged responses."""
    rewards = torch.tensor([-0.1, 0.2, 0, 1], dtype=torch.float64)
    value = torch.tensor([0.5, 0.4, 0.3, 0.2], dtype=torch.float64)
    response = torch.zeros(4, dtype=torch.long)
    expected = {0.95: [0.49065, 0.727, 0.66, 0.8], 1.0: [0.6, 0.8, 0.7, 0.8], 0.0: [-0.2, 0.1, -0.1, 0.8]}
    for lam, golden in expected.items():
        assert a.gae(rewards, value, response, lam).tolist() == pytest.approx(golden, abs=1e-12)
    draws = draws_of((3, 1, 5, 2))
    assert draws.value is not None
    rewards = a.token_rewards(draws, 0.3)
    slow, start = [], 0
    for count in (3, 1, 5, 2):
        r, v = rewards[start : start + count], [*draws.value[start : start + count].tolist(), 0.0]
        deltas = [float(r[t]) + v[t + 1] - v[t] for t in range(count)]
        slow += [sum(0.7 ** (s - t) * deltas[s] for s in range(t, count)) for t in range(count)]
        start += count
    assert a.gae(rewards, draws.value, draws.response, 0.7).tolist() == pytest.approx(slow, abs=1e-12)
    assert a.return_to_go(rewards[:0], draws.response[:0]).shape == (0,)


def test_the_score_stands_on_the_last_token_and_the_kl_on_every_one() -> None:
    draws = draws_of((3, 1))
    free = a.token_rewards(draws, 0.0)
    assert free.tolist() == [0, 0, float(draws.score[0]), float(draws.score[1])]
    assert draws.reference is not None
    assert torch.allclose(a.token_rewards(draws, 0.5), free - 0.5 * (draws.sampled - draws.reference), atol=1e-15)
    assert torch.equal(a.token_rewards(replace(draws, reference=None), 0.0), free), "without beta nobody asks for one"
    with pytest.raises(ValueError, match="needs a reference"):
        a.token_rewards(replace(draws, reference=None), 0.5)


def test_a_cut_response_keeps_its_score() -> None:
    draws = draws_of((3, 1, 2, 2))
    assert draws.ended.tolist() == [False, True, True, False]
    ended = replace(draws, ended=~draws.ended)
    for objective in (o.PPO(), o.RLOO(), o.GRPO(), o.ReinforcePP()):
        assert torch.equal(objective.advantages(draws).advantage, objective.advantages(ended).advantage)


def test_baselines_are_of_the_group() -> None:
    score, group = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0], dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1])
    assert a.leave_one_out(score, group).tolist() == [1 - 4, 2 - 3.5, 6 - 1.5, 0, 0]
    std = float(score[:3].std())
    assert a.group_scaled(score, group).tolist() == pytest.approx([-2 / std, -1 / std, 3 / std, 0, 0], abs=1e-6)
    third = torch.full((3,), 0.1, dtype=torch.float64)
    assert float(third.sum()) / 3 != 0.1
    for baseline in (a.leave_one_out, a.group_scaled):
        assert baseline(third, group[:3]).tolist() == [0, 0, 0], (
            "equal scores teach nothing, whatever their sum rounds to"
        )
    for baseline in (a.leave_one_out, a.group_scaled):
        with pytest.raises(ValueError, match="two responses"):
            baseline(score[:4], group[:4])
    white = a.whitened(score)
    assert (float(white.mean()), float(white.std(unbiased=False))) == pytest.approx((0, 1), abs=1e-6)
    assert a.whitened(third).tolist() == [0, 0, 0]


def test_a_spread_that_is_rounding_is_not_blown_up() -> None:
    """What divides is the deviation and 1e-8."""
    assert a.whitened(torch.tensor([0, 2e-8], dtype=torch.float64)).tolist() == pytest.approx([-0.5, 0.5])
    pair = torch.tensor([0, 2**0.5 * 1e-8], dtype=torch.float64)
    assert a.group_scaled(pair, torch.zeros(2, dtype=torch.long)).tolist() == pytest.approx([-(0.125**0.5), 0.125**0.5])


def test_grpo_is_a_mean_over_the_tokens_of_the_phase() -> None:
    draws = draws_of((3, 1, 5, 2))
    rewards = a.response_rewards(draws, 0.05)
    plain = (rewards - a.group_mean(rewards, draws.group))[draws.response]
    assert torch.allclose(o.GRPO().advantages(draws).advantage, plain / (11 / 4), atol=1e-15)
    with pytest.raises(ValueError, match="needs a value"):
        o.PPO().advantages(replace(draws, value=None))


LATER = [o.GRPO(), o.GSPO(norm="token"), o.CISPO(), o.SAPO(norm="token")]


@pytest.mark.parametrize("objective", LATER, ids=repr)
def test_the_first_update_of_a_phase_is_the_same_for_all_of_groups(objective: o.GRPO | o.CISPO | o.SAPO) -> None:
    """Where the policy is the one that drew, every surrogate has the gradient -sum A d log pi; then they part."""
    draws = draws_of((3, 1, 5, 2))
    advantage = objective.advantages(draws).advantage
    ones = torch.ones(4)

    def gradient(token_logp: Tensor) -> Tensor:
        leaf = token_logp.clone().requires_grad_()
        value = objective(Rollouts(leaf, draws.sampled, advantage, draws.response, ones)).sum()
        return torch.autograd.grad(value, [leaf])[0]

    assert torch.allclose(gradient(draws.sampled), -advantage, atol=1e-12)
    assert not torch.allclose(gradient(draws.sampled + 0.3), -advantage, atol=1e-3)


def test_norms_divide_by_tokens() -> None:
    draws = draws_of((3, 1, 5, 2))
    rewards = a.response_rewards(draws, 0.05)
    plain = (rewards - a.group_mean(rewards, draws.group))[draws.response]
    lengths = torch.tensor([3, 1, 5, 2])[draws.response]
    divisors = {"sum": 1, "sequence": lengths, "token": 11 / 4}
    for norm, divisor in divisors.items():
        for table in (o.GRPO, o.GSPO, o.CISPO, o.SAPO):
            assert torch.allclose(table(norm=norm).advantages(draws).advantage, plain / divisor, atol=1e-15), norm


def test_surrogates_of_groups_by_hand() -> None:
    """Two responses, of two tokens with ratios 1.5 and 1.2 and of one with 0.5; advantages 1 and -1."""
    ratios = torch.tensor([1.5, 1.2, 0.5], dtype=torch.float64)
    response, advantage = torch.tensor([0, 0, 1]), torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    sampled = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    token_logp = (sampled + ratios.log()).requires_grad_()
    rollouts = Rollouts(token_logp, sampled, advantage, response, torch.ones(2))

    def of(objective: o.GRPO | o.CISPO | o.SAPO) -> tuple[list[float], list[float]]:
        values = objective(rollouts)
        (slopes,) = torch.autograd.grad(values.sum(), [token_logp])
        return values.tolist(), slopes.tolist()

    assert of(o.GRPO(clip=0.2, clip_high=0.3)) == (pytest.approx([-2.5, 0.8]), pytest.approx([0, -1.2, 0]))
    mean = (1.5 * 1.2) ** 0.5
    assert of(o.GSPO(clip=0.6, clip_high=0.5)) == (pytest.approx([-2 * mean, 0.5]), pytest.approx([-mean, -mean, 0.5]))
    assert of(o.GSPO())[1] == pytest.approx([0, 0, 0])
    logp = token_logp.detach()
    values, slopes = of(o.CISPO(clip_high=0.3))
    assert values == pytest.approx([float(-1.3 * logp[0] - 1.2 * logp[1]), float(0.5 * logp[2])])
    assert slopes == pytest.approx([-1.3, -1.2, 0.5])

    def gate(ratio: float, tau: float) -> float:
        return 4 / tau / (1 + exp(-tau * (ratio - 1)))

    assert of(o.SAPO())[0] == pytest.approx([-gate(1.5, 1) - gate(1.2, 1), gate(0.5, 1.05)])
    beyond = {
        o.GRPO(clip=0.2, clip_high=0.3): [True, False, True], o.GRPO(): [True, False, True],
        o.GRPO(clip=None, clip_high=0.6): [False, False, False], o.CISPO(clip_high=0.3): [True, False, False],
        o.GSPO(clip_high=0.5): [False, False, True], o.GSPO(): [True, True, True],
        o.PPO(clip_high=0.3): [True, False, True], o.RLOO(): None, o.SAPO(): None,
    }  # fmt: skip
    for objective, expected in beyond.items():
        cut = objective.beyond(rollouts)
        assert (None if cut is None else cut.tolist()) == expected, objective


def test_published_recipes_of_groups() -> None:
    dapo, dr_grpo = PRESETS["dapo"].objective, PRESETS["dr_grpo"].objective
    assert dapo == o.GRPO(beta=0, clip=0.2, clip_high=0.28, scale="group", norm="token")
    assert dr_grpo == o.GRPO(beta=0, scale="none", norm="sum")
    assert (o.GSPO().clip, o.GSPO().clip_high, o.GSPO().norm) == (3e-4, 4e-4, "sequence")
    assert (o.CISPO().clip_high, o.SAPO().tau_pos, o.SAPO().tau_neg) == (4, 1, 1.05)


def test_returns_are_what_the_values_should_have_been() -> None:
    """With lambda 1 what really came; otherwise the advantage on top of the old value."""
    draws = draws_of((3, 1, 5, 2))
    assert draws.value is not None
    whole = o.PPO(lam=1.0).advantages(draws)
    assert whole.returns is not None
    assert torch.allclose(whole.returns, a.return_to_go(a.token_rewards(draws, 0.05), draws.response), atol=1e-12)
    part = o.PPO(lam=0.5).advantages(draws)
    assert part.returns is not None
    assert torch.allclose(part.returns - draws.value, part.advantage, atol=1e-12)


def test_usual_constants() -> None:
    """RLOO is unclipped, as published; the others clip at 0.2, and no value is clipped unless asked for."""
    assert o.RLOO().clip is None
    assert [o.PPO().clip, o.GRPO().clip, o.ReinforcePP().clip] == [0.2] * 3
    assert (o.PPO().lam, o.PPO().value_clip, o.GRPO().scale) == (0.95, None, "none")
    assert [table.least_responses for table in (o.PPO, o.RLOO, o.GRPO, o.ReinforcePP)] == [1, 2, 2, 1]


@pytest.mark.parametrize(
    ("ratio", "sign", "value", "slope"),
    [
        (0.7, 1, -0.7, -0.7), (0.9, 1, -0.9, -0.9), (1.1, 1, -1.1, -1.1), (1.3, 1, -1.2, 0.0),
        (0.7, -1, 0.8, 0.0), (0.9, -1, 0.9, 0.9), (1.1, -1, 1.1, 1.1), (1.3, -1, 1.3, 1.3),
    ],
)  # fmt: skip
def test_the_clip(ratio: float, sign: int, value: float, slope: float) -> None:
    token_logp = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    single = torch.ones(1, dtype=torch.float64)
    rollouts = Rollouts(token_logp, 0 * single, sign * single, torch.zeros(1, dtype=torch.long), single)
    loss = o.PPO(clip=0.2)(rollouts)
    (derivative,) = torch.autograd.grad(loss.sum(), [token_logp])
    assert (float(loss.detach()), float(derivative)) == pytest.approx((value, slope), abs=1e-12)
    assert float(o.PPO(clip=None)(rollouts).detach()) == pytest.approx(-sign * ratio)


@pytest.mark.parametrize("objective", [o.PPO, o.RLOO, o.GRPO, o.ReinforcePP])
def test_a_second_bound_counts_above(objective: type[o.PPO]) -> None:
    ratio = torch.tensor([0.7, 1.3, 1.6, 1.6], dtype=torch.float64)
    advantage = torch.tensor([1, 1, 1, -1], dtype=torch.float64)
    rollouts = Rollouts(ratio.log(), torch.zeros_like(ratio), advantage, torch.arange(4), torch.ones_like(ratio))
    formula = objective(clip=0.2, clip_high=0.5)
    assert formula(rollouts).tolist() == pytest.approx([-0.7, -1.3, -1.5, 1.6])
    beyond = formula.beyond(rollouts)
    assert beyond is not None
    assert beyond.tolist() == [False, False, True, False]


def test_a_group_is_divided_by_its_deviation_where_that_is_asked_for() -> None:
    draws = Draws(
        sampled=torch.zeros(4, dtype=torch.float64), reference=None, value=None, response=torch.tensor([0, 1, 1, 2]),
        group=torch.tensor([0, 0, 0]), score=torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64),
        ended=torch.ones(3, dtype=torch.bool),
    )  # fmt: skip
    std = float(draws.score.std())
    for scale, by in (("none", 1.0), ("group", std)):
        advantage = o.GRPO(beta=0, scale=scale, norm="sum").advantages(draws).advantage
        assert advantage.tolist() == pytest.approx([-2 / by, -1 / by, -1 / by, 3 / by])


@pytest.mark.parametrize(("value", "loss", "slope"), [(0.5, 0.32, 0.0), (0.9, 0.405, 0.9), (-1.0, 0.5, -1.0)])
def test_the_value_clip_counts_below_as_above(value: float, loss: float, slope: float) -> None:
    """Old value 1, return 0, clip 0.2: the edge is 0.8."""
    leaf = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    single = torch.ones(1, dtype=torch.float64)
    total = o.PPO(value_clip=0.2).value_loss(Values(leaf, single, 0 * single, torch.zeros(1, dtype=torch.long), single))
    (derivative,) = torch.autograd.grad(total.sum(), [leaf])
    assert (float(total.detach()), float(derivative)) == pytest.approx((loss, slope), abs=1e-12)


@pytest.mark.parametrize(
    ("value", "clip", "loss", "slope"),
    [
        (1.5, None, 0.125, -0.5),
        (1.5, 0.2, 0.32, 0.0),
        (1.1, 0.2, 0.405, -0.9),
        (2.5, 0.2, 0.32, 0.0),
        (0.5, 0.2, 1.125, -1.5),
    ],
)
def test_the_value_clip(value: float, clip: float | None, loss: float, slope: float) -> None:
    """Old value 1, return 2: beyond the clip a value that came nearer counts as if it stood at its edge."""
    leaf = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    single = torch.ones(1, dtype=torch.float64)
    values = Values(leaf, single, 2 * single, torch.zeros(1, dtype=torch.long), single)
    total = o.PPO(value_clip=clip).value_loss(values)
    (derivative,) = torch.autograd.grad(total.sum(), [leaf])
    assert (float(total.detach()), float(derivative)) == pytest.approx((loss, slope), abs=1e-12)


def test_a_correction_is_a_number_that_is_cut() -> None:
    logp, sampled = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.0, -0.5, -3.0])
    mended = a.corrected(Advantages(torch.ones(3), torch.ones(3)), logp, sampled)
    assert mended.advantage.tolist() == pytest.approx([1, 0.60653066, 2], rel=1e-6)
    assert mended.returns is not None
    assert mended.returns.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "objective",
    [table() for table in o.BY_NAME.values() if table.kind == "rollouts"] + [o.GRPO(scale="group")],
    ids=repr,
)
def test_order_and_split_of_a_phase_change_nothing(objective: o.PPO | o.RLOO | o.GRPO | o.ReinforcePP) -> None:
    """Tasks in another order have the same advantages; a step in packs has the sum of their values and gradients."""
    tokens = (3, 1, 5, 2, 2, 4)
    draws = draws_of(tokens, groups=3)
    advantage = objective.advantages(draws).advantage
    order = torch.tensor([4, 5, 0, 1, 2, 3])  # the groups turned round by one
    rows = torch.cat([torch.nonzero(draws.response == i)[:, 0] for i in order])
    place = torch.empty(6, dtype=torch.long).scatter(0, order, torch.arange(6))
    turned = Draws(
        draws.sampled[rows], draws.ref_logp[rows], None if draws.value is None else draws.value[rows],
        place[draws.response[rows]], torch.tensor([0, 0, 1, 1, 2, 2]), draws.score[order], draws.ended[order],
    )  # fmt: skip
    assert torch.allclose(objective.advantages(turned).advantage, advantage[rows], atol=1e-12)
    token_logp = (draws.sampled + 0.1).requires_grad_()
    whole = objective(Rollouts(token_logp, draws.sampled, advantage, draws.response, torch.ones(6)))
    packs = []
    for pack in ([0, 1], [2, 3, 4, 5]):
        at = torch.cat([torch.nonzero(draws.response == i)[:, 0] for i in pack])
        response = draws.response[at] - pack[0]
        packs.append(
            objective(Rollouts(token_logp[at], draws.sampled[at], advantage[at], response, torch.ones(len(pack))))
        )
    split = torch.cat(packs)
    assert torch.allclose(whole, split, atol=1e-12)
    gradients = [torch.autograd.grad(values.sum(), [token_logp])[0] for values in (whole, split)]
    assert torch.allclose(*gradients, atol=1e-12)
    assert float(gradients[0].abs().max()) > 0


@pytest.mark.parametrize("objective", [table() for table in o.BY_NAME.values() if table.kind == "rollouts"], ids=repr)
def test_advantages_read_what_the_objective_says(objective: o.PPO | o.RLOO | o.GRPO | o.ReinforcePP) -> None:
    """What `reads` names changes the advantages, and nothing else of the draws does."""
    draws = draws_of((3, 1, 5, 2))
    assert draws.value is not None
    changes = {
        "score": replace(draws, score=draws.score + torch.arange(4)),
        "reference": replace(draws, reference=draws.ref_logp - torch.arange(11)),
        "value": replace(draws, value=draws.value + torch.arange(11)),
    }
    advantage = objective.advantages(draws).advantage
    for read, other in changes.items():
        assert torch.equal(objective.advantages(other).advantage, advantage) == (read not in objective.reads), read
    assert objective.reads <= set(o.READS)
    assert "reference" not in type(objective)(beta=0.0).reads
    with_returns = objective.advantages(draws).returns is not None
    assert with_returns == ("value" in objective.reads)


LONG = Schedule(phases=400, draws=8)
SEVERAL = Schedule(phases=400, draws=8, epochs=2)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(o.RLOO(), LONG),
        Recipe(o.PPO(), Schedule(phases=400, draws=8, epochs=4)),
        Recipe(o.GRPO(), LONG),
        Recipe(o.GRPO(scale="group"), LONG),
        Recipe(o.GSPO(clip=0.1, clip_high=0.1), SEVERAL),
        Recipe(o.CISPO(), SEVERAL),
        Recipe(o.SAPO(), SEVERAL),
        Recipe(o.DPO(), LONG),
    ],
    ids=lambda recipe: recipe.objective.name,
)
def test_it_comes_to_the_optimum_from_its_own_draws(recipe: Recipe) -> None:
    """KL(pi, pi*) is 1.6 at the start; the two that DPO inverts are soft labels."""
    policy = learn_online(WORLD, recipe, WORLD.reward, BETA)
    assert exact.kl_to_optimum(policy) < 0.01
    assert exact.kl_to_optimum(WORLD.reference) > 1


def test_labels_that_are_certain_run_away() -> None:
    hard, drawn = (
        learn_online(WORLD, Recipe(o.DPO(), LONG, labels), WORLD.reward, BETA) for labels in ("ranks", "drawn")
    )
    assert exact.kl_to_optimum(hard) > 0.5
    assert exact.kl_to_optimum(drawn) < 0.05


def test_votes_of_all_pairs_are_those_of_the_labels() -> None:
    """The pairs that the world makes at once are those that the labels of a group say, one or the other way round."""
    score = torch.tensor([[0.3, -1.0, 0.3, 2.0]], dtype=torch.float64)
    first, second, vote = pair_votes(score, "soft", torch.Generator())
    ranks, preferred = labels_of_scores(score[0].tolist(), "soft")
    above, below, _ = ranking_pairs(ranks)
    assert isinstance(preferred, tuple)
    expected = {(i, j): p for i, j, p in zip(above, below, preferred, strict=True)}
    expected |= {(j, i): 1 - p for (i, j), p in expected.items()}
    votes = {(int(i), int(j)): float(p) for i, j, p in zip(first, second, vote, strict=True)}
    assert len(votes) == 6
    assert votes == pytest.approx({pair: expected[pair] for pair in votes}, abs=1e-15)

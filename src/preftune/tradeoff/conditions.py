"""What happens where data or reference are not what a method wants: rare answers, shift, a weak reference, noise."""

from __future__ import annotations

import torch
from torch import Tensor

from preftune.objective import DPO, Formula, HyPO, RobustDPO
from preftune.tradeoff.methods import BETA, PAIRS, Method, means, modeled, offline, online, outcome
from preftune.tradeoff.offline import Judged, judge, learn_offline, reward_model, together
from preftune.tradeoff.results import MODELED, TRUE, Mean, Outcome, Rare, Shift, mean
from preftune.tradeoff.world import World, expected

STEEP = 0.25  # beta of the panel in which a reward model is leaned on
SECOND_SEED, MORE_SEED, CHECK_SEED = 3, 4, 9
CHECKED = 4000  # pairs of a prompt on which a reward model is measured
BINS = 10


def explored(world: World) -> tuple[list[Rare], float, float]:
    """In a world whose best answers begin as the reference hardly ever does: how much of them each method finds.

    Returns also the share of such answers under the reference and under the best policy.
    """
    first = world.tree.token[:, 0] == 1

    def share(logp: Tensor) -> Mean:
        return mean(world.by_run(logp.exp()[:, first].sum(-1)))

    def end(method: Method, pairs: Judged, count: int | None) -> Rare:
        logp = method.policy(world, pairs, BETA)
        _, _, gap = means(world, logp)
        return Rare(method.name, count, share(logp), gap)

    judged = {count: judge(world, count) for count in (100, 1000, 10_000)}
    ends = [end(method, pairs, count) for count, pairs in judged.items()
            for method in (offline(DPO(), "DPO"), modeled("RLOO"))]  # fmt: skip
    names = ("RLOO", "PPO", "online DPO, soft labels", "online DPO, drawn labels")
    ends += [end(online(name), judged[10_000], None) for name in names]
    return ends, share(world.ref_logp).value, share(world.logp(world.optimum(BETA))).value


def shifted(world: World) -> tuple[list[Shift], list[Outcome]]:
    """Reward models on the responses that they were fitted to and on those of the policy that they made; and what a
    second round of pairs gives the table, from that policy or from the reference again."""
    pairs = judge(world, PAIRS)
    shifts, rounds = [], []
    for linear in (False, True):
        name = "linear" if linear else "table"
        score = reward_model(world, pairs, linear=linear)
        tuned = world.tilted(score, STEEP)
        before, after = checked(world, score, world.ref_logp), checked(world, score, tuned)
        claimed, true = (_gain(world, values, tuned) for values in (score, world.reward))
        shifts.append(Shift(name, before[0], after[0], before[1], after[1], claimed, true))
        again = {
            "one round": pairs,
            "a second of the tuned policy": together(pairs, judge(world, PAIRS, SECOND_SEED, tuned)),
            "a second of the reference": together(pairs, judge(world, PAIRS, MORE_SEED)),
        }
        for round_name, of_round in again.items():
            logp = world.tilted(reward_model(world, of_round, linear=linear), STEEP)
            rounds.append(Outcome(f"{name} model, {round_name}", MODELED, STEEP, *means(world, logp), limit=True))
    return shifts, rounds


def checked(world: World, score: Tensor, logp: Tensor) -> tuple[Mean, Mean]:
    """Share of pairs of a policy that the scores order as the true reward does, and their calibration error."""
    draws = torch.Generator().manual_seed(CHECK_SEED)
    a, b = (torch.multinomial(logp.exp(), CHECKED, True, generator=draws) for _ in range(2))
    said, true = (values.gather(1, a) - values.gather(1, b) for values in (score, world.reward))
    label = torch.bernoulli(true.sigmoid(), generator=draws)
    right, errors = [], []
    for groups in torch.arange(len(score)).split(world.prompts):
        different = (a != b)[groups]
        agree = ((said > 0) == (true > 0))[groups][different]
        right.append(float(agree.double().mean()))
        errors.append(_calibration_error(said[groups][different].sigmoid(), label[groups][different]))
    return mean(right), mean(errors)


def _calibration_error(probability: Tensor, label: Tensor) -> float:
    """Expected calibration error over bins of equal width."""
    index = (probability * BINS).long().clamp(max=BINS - 1)
    total = torch.zeros(BINS, dtype=probability.dtype).index_add(0, index, probability - label)
    return float(total.abs().sum() / len(label))


def _gain(world: World, values: Tensor, logp: Tensor) -> Mean:
    """Mean of the values under a policy minus that under the reference."""
    return mean(world.by_run(((logp.exp() - world.ref_logp.exp()) * values).sum(-1)))


def weakened(world: World) -> list[Outcome]:
    """With a reference that was turned away from the reward: the reward that each method reaches."""
    methods = (
        Method("reference", "", lambda world, pairs, beta: world.ref_logp, limit=True),
        offline(DPO(), "DPO"), offline(HyPO(), "HyPO"), modeled("RLOO"), online("RLOO"),
        Method("best policy", TRUE, lambda world, pairs, beta: world.tilted(world.reward, beta), limit=True),
    )  # fmt: skip
    pairs = judge(world, PAIRS)
    return [outcome(world, method, pairs, BETA) for method in methods]


def noisy(world: World, flipped: float) -> dict[str, Mean]:
    """With a share of the labels turned round: slope of beta times the log-ratio on the reward, 1 where it is right."""
    pairs = judge(world, PAIRS, flipped=flipped)
    objectives: dict[str, Formula] = {
        "DPO": DPO(beta=BETA), "cDPO": DPO(beta=BETA, flip=flipped), "robust DPO": RobustDPO(beta=BETA, flip=flipped),
    }  # fmt: skip
    return {name: _slope(world, world.logp(learn_offline(world, part, pairs))) for name, part in objectives.items()}


def _slope(world: World, logp: Tensor) -> Mean:
    """Of beta (log pi - log pi_ref) on the reward, weighted by the reference, prompt by prompt."""

    def centered(values: Tensor) -> Tensor:
        return values - expected(world.ref_logp, values)[:, None]

    weight, reward, learned = world.ref_logp.exp(), centered(world.reward), centered(BETA * (logp - world.ref_logp))
    return mean(world.by_run((weight * reward * learned).sum(-1) / (weight * reward**2).sum(-1)))

"""The methods that are compared: what each learns from, and the policy that it ends with.

Two are recipes as they are published and used, which stop elsewhere than their formula says; nothing else here has a
formula that is not in `preftune.objective`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from preftune.objective import BY_NAME, DPO, GRPO, IPO, KTO, NLL, PPO, RLOO, Formula, SimPO
from preftune.objective.responses import Draws
from preftune.tradeoff.learn import Schedule, TokenLoss, learn_online
from preftune.tradeoff.offline import Judged, best_of, learn_offline, reward_model
from preftune.tradeoff.world import World

PAIRS = 1000  # judged pairs of a prompt, unless a panel says otherwise
PPO_SCHEDULE = Schedule(epochs=4)
BEST_OF = (2, 4, 8, 16, 64)
JUDGED, MODELED, TRUE = "judged pairs", "reward model", "true reward"


class Method(Struct, frozen=True):
    """policy: from a world, its judged pairs, beta and a seed to (groups, responses) log-probabilities.

    source: what it learns from; limit: where it is an exact optimum or a bound, and nothing was trained.
    """

    name: str
    source: str
    policy: Callable[[World, Judged, float, int], Tensor]
    limit: bool = False


def at_beta(objective: Formula, beta: float) -> Formula:
    """The objective with its anchor at this beta; those whose constant has another unit keep their usual one.

    IPO's tau is half of it and SimPO's are 4 and 2 times it, where their slopes at the start are like DPO's.
    """
    if isinstance(objective, IPO):
        return replace(objective, tau=beta / 2)
    if isinstance(objective, SimPO):
        return replace(objective, beta=4 * beta, gamma=2 * beta)
    usual = getattr(objective, "beta", 1.0)
    return replace(objective, beta=beta) if usual <= 0.5 else objective


def offline(objective: Formula, name: str) -> Method:
    def policy(world: World, pairs: Judged, beta: float, seed: int) -> Tensor:
        return world.logp(learn_offline(world, at_beta(objective, beta), pairs))

    return Method(name, JUDGED, policy)


def modeled(name: str, objective: PPO | RLOO | None, *, linear: bool) -> Method:
    """A reward model on the pairs, and the best policy for it: learned online, or exact where there is no objective."""

    def policy(world: World, pairs: Judged, beta: float, seed: int) -> Tensor:
        score = reward_model(world, pairs, linear=linear)
        if objective is None:
            return world.tilted(score, beta)
        schedule = PPO_SCHEDULE if isinstance(objective, PPO) else Schedule()
        return world.logp(learn_online(world, replace(objective, beta=beta), score, schedule, seed=seed))

    return Method(name, MODELED, policy, limit=objective is None)


def online(name: str, learn: Callable[[World, float, int], Tensor]) -> Method:
    """Draws of its own, scored by the true reward."""
    return Method(name, TRUE, lambda world, pairs, beta, seed: world.logp(learn(world, beta, seed)))


def rloo(world: World, beta: float, seed: int, schedule: Schedule = Schedule()) -> Tensor:  # noqa: B008
    return learn_online(world, RLOO(beta=beta), world.reward, schedule, seed=seed)


def ppo(world: World, beta: float, seed: int, schedule: Schedule = PPO_SCHEDULE) -> Tensor:
    return learn_online(world, PPO(beta=beta), world.reward, schedule, seed=seed)


def grpo(world: World, beta: float, seed: int) -> Tensor:
    return learn_online(world, GRPO(beta=beta), world.reward, seed=seed)


def soft(world: World, beta: float, seed: int) -> Tensor:
    return learn_online(world, DPO(beta=beta), world.reward, seed=seed)


def drawn(world: World, beta: float, seed: int) -> Tensor:
    return learn_online(world, DPO(beta=beta), world.reward, labels="drawn", seed=seed)


def ranked(world: World, beta: float, seed: int) -> Tensor:
    return learn_online(world, DPO(beta=beta), world.reward, labels="ranks", seed=seed)


def published_grpo(world: World, beta: float, seed: int) -> Tensor:
    """Scores divided by their group's deviation, and the KL as a loss of each token (k3 times the ratio)."""
    objective = GRPO(beta=0.0, scale="group")
    return learn_online(world, objective, world.reward, token_loss=k3_loss(beta), seed=seed)


def k3_loss(beta: float) -> TokenLoss:
    """(members,) beta (exp(-d) - 1 + d) times the ratio to the drawing policy, d = log pi - log pi_ref."""

    def loss(token_logp: Tensor, draws: Draws) -> Tensor:
        d = token_logp - draws.ref_logp
        return beta * ((-d).exp() - 1 + d) * (token_logp - draws.sampled).exp()

    return loss


def best_of_methods() -> list[Method]:
    """The best of several draws of the reference, by the true reward; of the linear reward model, the best of 16."""

    def policy(count: int, model: bool, world: World, pairs: Judged, beta: float, seed: int) -> Tensor:
        return best_of(world, reward_model(world, pairs, linear=True) if model else world.reward, count)

    bounds = [Method(f"best of {count}", TRUE, partial(policy, count, False), limit=True) for count in BEST_OF]
    return [*bounds, Method("best of 16", MODELED, partial(policy, 16, True), limit=True)]


METHODS = (
    offline(DPO(), "DPO"), offline(IPO(), "IPO"), offline(KTO(), "KTO"), offline(SimPO(), "SimPO"),
    modeled("optimum of a table model", None, linear=False), modeled("optimum of a linear model", None, linear=True),
    modeled("PPO, linear model", PPO(), linear=True), modeled("RLOO, linear model", RLOO(), linear=True),
    online("PPO", ppo), online("RLOO", rloo), online("GRPO", grpo),
    online("online DPO, soft labels", soft), online("online DPO, drawn labels", drawn),
    online("online DPO, ranks", ranked), online("GRPO as published", published_grpo),
)  # fmt: skip
SFT = offline(NLL("sum"), "SFT on chosen")


def every_offline() -> list[Method]:
    """Each objective of the library that pairs serve, on the same pairs; some get the true scores as well."""
    policies = ("pairs", "ratings", "rankings", "demos")  # a reward model's objective is none of a policy
    usable = [table() for table in BY_NAME.values() if table.kind in policies]
    return [offline(objective, objective.name) for objective in usable if "quantile" not in objective.reads]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

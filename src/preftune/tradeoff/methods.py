"""The methods that are compared: what each learns from, and the policy that it ends with.

Two are recipes as they are published and used, which stop elsewhere than their formula says; nothing else here has a
formula that is not in `preftune.objective`.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from preftune.objective import BY_NAME, DPO, GRPO, IPO, KTO, NLL, PPO, RLOO, Formula, SimPO
from preftune.tradeoff.learn import Recipe, Schedule, learn_online
from preftune.tradeoff.offline import Judged, best_of, learn_offline, reward_model
from preftune.tradeoff.results import JUDGED, MODELED, TRUE, Mean, Outcome, mean
from preftune.tradeoff.world import World

BETA = 0.5  # unless a panel says otherwise, as the next line
PAIRS = 1000  # judged pairs of a prompt
BEST_OF = (2, 4, 8, 16, 64)


class Method(Struct, frozen=True):
    """policy: from a world, its judged pairs and beta to (groups, responses) log-probabilities.

    source: what it learns from; limit: where it is an exact optimum or a bound, and nothing was trained.
    """

    name: str
    source: str
    policy: Callable[[World, Judged, float], Tensor]
    limit: bool = False


ONLINE = {
    "PPO": Recipe(PPO(), Schedule(epochs=4)),
    "RLOO": Recipe(RLOO()),
    "GRPO": Recipe(GRPO()),
    "online DPO, soft labels": Recipe(DPO()),
    "online DPO, drawn labels": Recipe(DPO(), labels="drawn"),
    "online DPO, ranks": Recipe(DPO(), labels="ranks"),
    "GRPO as published": Recipe(GRPO(scale="group"), kl_loss=True),  # scores over their group's deviation
}


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
    def policy(world: World, pairs: Judged, beta: float) -> Tensor:
        return world.logp(learn_offline(world, at_beta(objective, beta), pairs))

    return Method(name, JUDGED, policy)


def online(name: str) -> Method:
    """Draws of its own, scored by the true reward."""
    return Method(
        name, TRUE, lambda world, pairs, beta: world.logp(learn_online(world, ONLINE[name], world.reward, beta))
    )


def modeled(name: str) -> Method:
    """Draws of its own, scored by a linear reward model of the pairs."""

    def policy(world: World, pairs: Judged, beta: float) -> Tensor:
        score = reward_model(world, pairs, linear=True)
        return world.logp(learn_online(world, ONLINE[name], score, beta))

    return Method(f"{name}, linear model", MODELED, policy)


def optimum(name: str, *, linear: bool) -> Method:
    """The best policy for a reward model of the pairs."""

    def policy(world: World, pairs: Judged, beta: float) -> Tensor:
        return world.tilted(reward_model(world, pairs, linear=linear), beta)

    return Method(f"optimum of a {name} model", MODELED, policy, limit=True)


def best_of_methods() -> list[Method]:
    """The best of several draws of the reference, by the true reward; of the linear reward model, the best of 16."""

    def by_reward(count: int) -> Method:
        return Method(f"best of {count}", TRUE, lambda world, *_: best_of(world, world.reward, count), limit=True)

    def by_model(world: World, pairs: Judged, beta: float) -> Tensor:
        return best_of(world, reward_model(world, pairs, linear=True), 16)

    return [*map(by_reward, BEST_OF), Method("best of 16", MODELED, by_model, limit=True)]


METHODS = (
    offline(DPO(), "DPO"), offline(IPO(), "IPO"), offline(KTO(), "KTO"), offline(SimPO(), "SimPO"),
    optimum("table", linear=False), optimum("linear", linear=True), modeled("PPO"), modeled("RLOO"),
    *map(online, ONLINE),
)  # fmt: skip
SFT = offline(NLL("sum"), "SFT on chosen")


def every_offline() -> list[Method]:
    """Each objective of the library that pairs serve, on the same pairs; some get the true scores as well."""
    policies = ("pairs", "ratings", "rankings", "demos")  # a reward model's objective is none of a policy
    usable = [table() for table in BY_NAME.values() if table.kind in policies]
    return [offline(objective, objective.name) for objective in usable if "quantile" not in objective.reads]


def outcome(world: World, method: Method, pairs: Judged, beta: float | None) -> Outcome:
    """Where a method ends."""
    logp = method.policy(world, pairs, beta or BETA)
    return Outcome(method.name, method.source, beta, *means(world, logp), method.limit)


def means(world: World, logp: Tensor) -> tuple[Mean, Mean, Mean]:
    """KL, true reward and gap of a policy, (groups, responses) log-probabilities, over the runs."""
    kl, reward, gap = map(mean, world.measured(logp))
    return kl, reward, gap

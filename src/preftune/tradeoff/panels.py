"""The comparison in the exact world: the methods under the ceiling, where each stops, its keys and what it needs."""

from __future__ import annotations

import time

import numpy as np
from msgspec.structs import replace
from torch import Tensor

from preftune.events import Progress, emit
from preftune.objective import DPO, GRPO, NLL, PPO, RLOO, Formula
from preftune.tradeoff.conditions import explored, noisy, shifted, weakened
from preftune.tradeoff.learn import Schedule, learn_online
from preftune.tradeoff.methods import BETA, METHODS, ONLINE, PAIRS, SFT, best_of_methods, every_offline, outcome
from preftune.tradeoff.offline import Judged, judge, learn_offline
from preftune.tradeoff.results import Ceiling, Cost, Course, Outcome, Results, Spread
from preftune.tradeoff.world import World, kl, make_world

BETAS, RUNS, PANELS = (0.25, 0.5, 1.0), 5, 9
COURSES = ("RLOO", "PPO", "online DPO, soft labels", "online DPO, drawn labels", "online DPO, ranks",
           "GRPO as published")  # fmt: skip
SNAPSHOTS = (10, 25, 50, 100, 150, 200, 250, 300)
CEILING = (8.0, 4.0, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.14, 0.1)
WEAK, FLIPPED = (0.0, 0.5, 1.0), (0.0, 0.1, 0.2, 0.4)
RATES, STEPS, EPOCHS, VALUE_RATES = (0.0125, 0.05, 0.2), (100, 300), (1, 4), (0.02, 0.2)


def compare(runs: int = RUNS) -> Results:
    """Every panel, in a minute and a half of one core."""
    began = time.process_time()
    world = make_world(runs=runs)
    pairs = judge(world, PAIRS)
    announced = iter(range(1, PANELS + 1))

    def announce(name: str) -> None:
        emit(Progress(f"the exact world: {name}", next(announced), PANELS))

    announce("methods")
    methods = frontier(world, pairs)
    announce("objectives")
    objectives = [outcome(world, method, pairs, BETA) for method in every_offline()]
    announce("courses")
    course = courses(world)
    announce("exploration")
    rare, rare_before, rare_best = explored(make_world(runs=runs, rare=True))
    announce("shift")
    shift, rounds = shifted(make_world(runs=runs, noise=0.6))
    announce("weak references")
    weak = [(turned, weakened(make_world(runs=runs, weak=turned))) for turned in WEAK]
    announce("noise")
    noise = [(flipped, noisy(world, flipped)) for flipped in FLIPPED]
    announce("sensitivity")
    spreads = sensitivity(world, pairs)
    announce("costs")
    return Results(
        runs=runs, beta=BETA, pairs=PAIRS,
        ceiling=[Ceiling(p.beta, p.kl, p.reward) for p in map(world.frontier.at_beta, CEILING)],
        frontier=methods, objectives=objectives, courses=course, rare=rare, rare_before=rare_before,
        rare_best=rare_best, shift=shift, rounds=rounds, weak=weak, noise=noise, sensitivity=spreads,
        costs=costs(), seconds=time.process_time() - began,
    )  # fmt: skip


def frontier(world: World, pairs: Judged) -> list[Outcome]:
    """The methods at each beta, and what has none once."""
    by_beta = [outcome(world, method, pairs, beta) for beta in BETAS for method in METHODS]
    return [*by_beta, *(outcome(world, method, pairs, None) for method in (SFT, *best_of_methods()))]


def courses(world: World) -> list[Course]:
    """How far each online method is from pi* as it goes."""
    best = world.logp(world.optimum(BETA))
    made = []
    for name in COURSES:
        distances: list[float] = []

        def watch(phase: int, logits: Tensor, distances: list[float] = distances) -> None:
            if phase in SNAPSHOTS:
                distances.append(float(kl(world.logp(logits), best).mean()))

        learn_online(world, ONLINE[name], world.reward, BETA, watch)
        made.append(Course(name, list(SNAPSHOTS), distances))
    return made


def sensitivity(world: World, pairs: Judged) -> list[Spread]:
    """The gap over grids of the settings that one has to choose, a third of the usual phases for those online."""

    policies = {
        "DPO": [learn_offline(world, DPO(beta=BETA), pairs, steps=steps, lr=lr) for lr in RATES for steps in STEPS]
    }
    schedules = {
        "RLOO": [Schedule(phases=100, lr=lr, epochs=epochs) for lr in RATES for epochs in EPOCHS],
        "PPO": [Schedule(phases=100, lr=lr, epochs=epochs, value_lr=value_lr)
                for lr in RATES for epochs in EPOCHS for value_lr in VALUE_RATES],
    }  # fmt: skip
    for name, grid in schedules.items():
        recipes = [replace(ONLINE[name], schedule=schedule) for schedule in grid]
        policies[name] = [learn_online(world, recipe, world.reward, BETA) for recipe in recipes]
    spreads = []
    for name, of_method in policies.items():
        gaps = [float(world.measured(world.logp(logits))[2].mean()) for logits in of_method]
        spreads.append(Spread(name, len(gaps), min(gaps), float(np.median(gaps)), max(gaps)))
    return spreads


def costs() -> list[Cost]:
    """What each method needs, counted from its objective and its schedule, of one prompt."""
    usual, ppo, updates = Schedule(), ONLINE["PPO"].schedule, 300
    drawn = usual.phases * usual.draws * usual.responses
    rows: list[tuple[str, Formula, list[str], int, int, int]] = [
        ("DPO", DPO(), [], PAIRS, 0, updates),
        ("SFT on chosen", NLL(), [], PAIRS, 0, updates),
        ("RLOO, reward model", RLOO(), ["reward"], PAIRS, drawn, usual.phases),
        ("RLOO, a function", RLOO(), [], 0, drawn, usual.phases),
        ("GRPO, a function", GRPO(), [], 0, drawn, usual.phases),
        ("PPO, reward model", PPO(), ["reward"], PAIRS, drawn, ppo.phases * ppo.epochs),
        ("online DPO, reward model", DPO(), ["reward"], PAIRS, drawn, usual.phases),
    ]
    counted = []
    for name, objective, models, pairs, draws, count in rows:
        needed = [name for name in ("reference", "value") if name in objective.reads]
        counted.append(Cost(name, ["policy", *needed, *models], len(objective.__struct_fields__), pairs, draws, count))
    return counted

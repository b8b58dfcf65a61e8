"""The comparison in the readable world: the methods on a language model, each an ordinary run of this library.

The ceiling, KL and reward are estimated from draws here, and every method is trained once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace

from preftune import files
from preftune.config.run import Run
from preftune.demo import stages
from preftune.demo.comparison import models_in_memory
from preftune.demo.measure import Reference, Reviews, ceiling_by_level, shares_of_levels
from preftune.demo.stages import BETA, DRAWING, HELD_OUT_DISHES, JUDGED_DISHES
from preftune.events import Event, Progress, emit, listening, silence
from preftune.frontier.measure import Frontier, interval
from preftune.objective import DPO, IPO, KTO, PPO, RLOO, SimPO
from preftune.record.reader import Record
from preftune.rollout.config import Reward, Value
from preftune.run.train import train
from preftune.tradeoff.methods import at_beta
from preftune.tradeoff.results import JUDGED, MODELED, TRUE, Ceiling, Language, Mean, Outcome, Trained

WORKERS = 2  # runs at a time, each on one core
PHASES = 90
BEST_OF = (2, 4, 8, 16)
CEILING = (8.0, 4.0, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25)
ON_MODEL = ("RLOO", "online DPO, soft labels")  # what else there is takes the time of the others again
TRUE_REWARD = Reward(function="preftune.demo.readable:scores")


class Planned(Struct, frozen=True):
    """A run to be done. name: of its method; source: what it learns from."""

    name: str
    source: str
    run: Run


def compare_language(seed: int = 0) -> Language:
    """Every method of the readable world, in about four minutes of one core, two runs at a time."""
    began = time.process_time()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "world"
        runs = planned(folder, seed)
        steps = ["a model that writes", "judged pairs", "a reward model", *(f"{p.name}, {p.source}" for p in runs)]
        announced = iter([Progress(f"the readable world: {name}", i + 1, len(steps)) for i, name in enumerate(steps)])
        emit(next(announced))
        with quietly():
            stages.make(folder, seed)
            train(stages.sft_run(folder, seed))
        emit(next(announced))
        with quietly():
            stages.ask(folder, seed)
        emit(next(announced))
        with quietly():
            train(stages.reward_run(folder, seed))
        seconds = []
        with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
            for spent in pool.map(trained, [plan.run for plan in runs]):
                seconds.append(spent)
                emit(next(announced))
        with quietly():
            world = measured(folder, runs, seconds, seed)
    return replace(world, seconds=sum(seconds) + time.process_time() - began)


def trained(run: Run) -> float:
    """Do the run and return its seconds of one core. Called in a process of its own."""
    torch.set_num_threads(1)
    start = time.process_time()
    with quietly():
        train(run)
    return time.process_time() - start


@contextmanager
def quietly() -> Iterator[None]:
    """Tell nobody of the runs inside, which would tell of every step."""
    with silence(), listening(_no_one):
        yield


def _no_one(event: Event) -> None:
    """A sink, so that a run opens no terminal of its own."""


def planned(folder: Path, seed: int) -> list[Planned]:
    """The runs in the order in which they are done."""
    offline = {"DPO": DPO(), "IPO": IPO(), "KTO": KTO(), "SimPO": SimPO()}
    runs = [
        Planned(name, JUDGED, stages.offline_run(folder, f"offline-{name}", at_beta(objective, BETA), seed))
        for name, objective in offline.items()
    ]
    learners = {
        "RLOO": (RLOO(beta=BETA), DRAWING),
        "PPO": (PPO(beta=BETA), replace(DRAWING, epochs=2)),
        "online DPO, soft labels": (DPO(beta=BETA), DRAWING),
        "online DPO, ranks": (DPO(beta=BETA), replace(DRAWING, labels="ranks")),
    }
    modeled = Reward(model=str(folder / "reward" / "model"))
    for source, reward, names in ((MODELED, modeled, ON_MODEL), (TRUE, TRUE_REWARD, tuple(learners))):
        for name in names:
            objective, rollout = learners[name]
            run = stages.online_run(folder, f"run-{len(runs)}", objective, reward, seed, rollout, PHASES)
            if isinstance(objective, PPO):
                run = replace(run, value=Value(lr=1e-3))
            runs.append(Planned(name, source, run))
    return runs


def measured(folder: Path, runs: Sequence[Planned], seconds: Sequence[float], seed: int) -> Language:
    """What the finished runs in the folder came to. seconds: of each run."""
    reference = Reference(folder / "sft" / "model", HELD_OUT_DISHES, seed)
    ends = []
    for plan, spent in zip(runs, seconds, strict=True):
        reviews = reference.reviews_of(Path(plan.run.out) / "model", plan.name)
        outcome = outcome_of(plan.name, plan.source, reference, reviews)
        ends.append(Trained(outcome, models_in_memory(plan.run), spent))
    frontier = Frontier.sampled(reference.reviews.reward)
    end = Record.open(folder / "reward").end
    points = [frontier.at_beta(beta) for beta in CEILING]
    return Language(
        beta=BETA,
        pairs=len(files.read_lines(folder / "pairs.jsonl")),
        phases=PHASES,
        drawn=PHASES * DRAWING.responses * len(JUDGED_DISHES),
        start=Mean(float(reference.reviews.reward.mean()), 0.0),
        ceiling=[Ceiling(p.beta, p.kl, p.reward) for p in points],
        trained=ends,
        best_of=[best_of(count, reference.reviews.reward) for count in BEST_OF],
        slope=reference.slope(folder / "reward" / "model"),
        accuracy=end.get("accuracy") or 0.0,
        seconds=sum(seconds),
    )


def outcome_of(name: str, source: str, reference: Reference, reviews: Reviews) -> Outcome:
    """Means with half of a 95 % interval over draws."""
    at = reference.standing(reviews)
    kl, reward = (
        Mean(float(values.mean()), _half(interval(np.mean, values))) for values in (reviews.log_ratio, reviews.reward)
    )
    return Outcome(name, source, BETA, kl, reward, Mean(at.gap, _half(at.gap_interval)))


def best_of(count: int, reward: np.ndarray) -> Outcome:
    """The response of most reward among `count` draws, one of those at random where several have it.

    reward: (groups, draws) of the reference. Such a policy weighs responses by their reward alone, so its KL is that of
    the rewards: sum_r P_n(r) log(P_n(r) / P(r)), P_n(r) = F(r)^n - F(r-)^n.
    """

    def measure(draws: np.ndarray) -> tuple[float, float, float]:
        levels, share = shares_of_levels(draws)
        up_to = share.cumsum(-1)
        best = up_to**count - (up_to - share).clip(min=0) ** count
        ratio = np.divide(best, share, out=np.ones_like(best), where=best > 0)
        kl, mean = float((best * np.log(ratio)).sum(-1).mean()), float((best @ levels).mean())
        return kl, mean, ceiling_by_level(draws).gap(mean, kl)

    halves = [_half(interval(lambda draws, i=i: measure(draws)[i], reward)) for i in range(3)]
    kl, mean, gap = (Mean(value, half) for value, half in zip(measure(reward), halves, strict=True))
    return Outcome(f"best of {count}", TRUE, None, kl, mean, gap, limit=True)


def _half(bounds: tuple[float, float]) -> float:
    return (bounds[1] - bounds[0]) / 2

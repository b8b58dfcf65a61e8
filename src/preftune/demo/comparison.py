"""The reference beside what DPO and RLHF made of it: the lines of the terminal and of the pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from preftune import files
from preftune.config.load import load
from preftune.config.run import Run, reward_tables
from preftune.demo import readable
from preftune.demo.measure import Reference, Reviews
from preftune.demo.sampling import draw, load_policy
from preftune.diagnosis.finding import number, share
from preftune.events import Note, emit
from preftune.frontier.measure import Frontier, interval, win_rate
from preftune.objective import PPO
from preftune.record.extras import Curve, ExtraChart, Extras, ExtraTable, Rewrite
from preftune.record.reader import HeldOutRow, Record

SHOWN = 3  # prompts of which a review is shown
BETAS = np.geomspace(20, 0.35, 40)  # of the ceiling


class Line(Struct, frozen=True):
    """One figure as it is printed: its name, its value for each model, and what it means."""

    name: str
    values: tuple[str, ...]
    meaning: str


class Written(Struct, frozen=True):
    """What each model wrote to a prompt."""

    prompt: str
    texts: tuple[str, ...]


class Comparison(Struct, frozen=True):
    """The reference and the tuned models, whose names are `models`, the reference's first."""

    models: tuple[str, ...]
    lines: tuple[Line, ...]
    ceiling: ExtraChart
    samples: tuple[Written, ...]


def compare(
    records: Mapping[str, Path], reward_record: Path, reference: Path, dishes: Sequence[str],
    judged: Sequence[readable.Judged], seed: int,
) -> Comparison:  # fmt: skip
    """Measure tuned models, records of runs by name, against their reference, a model's folder.

    reward_record: of the reward model's run; dishes: those whose reviews are drawn; judged: the pairs that the first
    run and the reward model's were evaluated on.
    """
    start = Reference(reference, dishes, seed)
    after = {name: start.reviews_of(path / "model", name) for name, path in records.items()}
    emit(Note("measuring"))
    runs = [load(path / "run.toml") for path in records.values()]
    direct, of_reward_model = (Record.open(path).rows for path in (next(iter(records.values())), reward_record))
    lines = [
        *policy_lines(start, list(after.values())),
        *pair_lines(direct, of_reward_model, judged),
        *run_lines(start, runs, start.slope(reward_record / "model")),
    ]
    policies = [start.policy, *(load_policy(path / "model") for path in records.values())]
    written = [
        draw(policy, start.tokenizer, start.prompts[:SHOWN], 1, seed=10 * seed + 4) for policy in policies
    ]  # the same random numbers for all; no text is picked by hand
    samples = tuple(
        Written(of[0].prompt, tuple(sample.texts[0].strip() for sample in of)) for of in zip(*written, strict=True)
    )
    return Comparison(("before", *after), tuple(lines), ceiling(start, after), samples)


def policy_lines(reference: Reference, after: Sequence[Reviews]) -> list[Line]:
    """What can be said of any policy's reviews, with 95 % intervals."""
    before = reference.reviews
    standings = [reference.standing(reviews) for reviews in after]
    betas = " and ".join(f"{s.best.beta:.2f}" for s in standings)
    effective = min(s.best.effective for s in standings)
    wins = [interval(win_rate, reviews.reward, before.reward) for reviews in after]
    rates = [_percent(win_rate(r.reward, before.reward), bounds) for r, bounds in zip(after, wins, strict=True)]
    return [
        Line("true reward", tuple(_mean(reviews.reward) for reviews in (before, *after)),
             "kind words minus harsh words, mean over reviews of dishes that nothing was trained on after SFT"),
        Line("win rate", ("50 %", *rates),
             "how often a review of the tuned model has more reward than one of the reference; a tie counts half"),
        Line("KL to the reference", ("0", *(f"{_mean(reviews.log_ratio)} nats" for reviews in after)),
             "how far the model moved from the reference: mean log-ratio of its own reviews"),
        Line("best reward at this KL", ("", *(f"{s.best.reward:.2f}" for s in standings)),
             f"no policy at this KL has more: the reference times exp(reward / beta) at beta {betas}, estimated from "
             f"its reviews by importance sampling; effective sample size {effective:,.0f} or more"),
        Line("short of the best by", ("", *(_with_interval(s.gap, s.gap_interval) for s in standings)),
             "what is lost beside the best policy of that KL"),
        Line("share reached", ("", *(share(s.reached, 0) for s in standings)),
             "of the reward that can be gained at that KL"),
        Line("tokens", tuple(_mean(reviews.tokens, 1) for reviews in (before, *after)),
             "length of a review; three kind clauses earn more than one"),
        Line("well formed", tuple(_percent(reviews.well_formed.mean()) for reviews in (before, *after)),
             "reviews that keep to the grammar of the SFT texts"),
    ]  # fmt: skip


def pair_lines(
    direct: Sequence[HeldOutRow], of_reward_model: Sequence[HeldOutRow], judged: Sequence[readable.Judged]
) -> list[Line]:
    """What the runs on the judged pairs say of new pairs. Rows: of the last evaluation on the `judged` ones."""
    right = [np.array([[_verdict(row.margin or 0.0) for row in rows]]) for rows in (direct, of_reward_model)]
    accuracy = [_percent(hits.mean(), interval(np.mean, hits)) for hits in right]
    most = np.mean([_verdict(readable.reward(pair.chosen) - readable.reward(pair.rejected)) for pair in judged])
    return [
        Line("held-out accuracy", ("50 %", *accuracy),
             f"how often DPO's log-ratio, and the reward model, rank {len(direct)} new pairs as the judge did; the "
             f"judge errs, and the true reward itself gets {share(float(most))}"),
        Line("logp of chosen", ("", _change([row.chosen_logp_change for row in direct]), ""),
             "change of the log-probability of the judge's choices in those pairs, in nats; it may well fall"),
        Line("logp of rejected", ("", _change([row.rejected_logp_change for row in direct]), ""),
             "the same for what the judge rejected; DPO moves the difference of the two"),
    ]  # fmt: skip


def run_lines(reference: Reference, runs: Sequence[Run], slope: float) -> list[Line]:
    """What the runs need, and what the reward model's slope does to the last one's beta."""
    models = [models_in_memory(run) for run in runs]
    beta = runs[-1].objective.beta
    aims = [Frontier.sampled(reference.reviews.reward).at_beta(of) for of in (beta, beta / slope)]
    return [
        Line("models in memory", ("1", *(f"{len(of)}" for of in models)),
             "; ".join(", ".join(of) for of in models)
             + ". DPO's reference has scored every pair beforehand; PPO would hold a value model as well"),
        Line("slope of the rewards", ("", "", f"{slope:.2f}"),
             f"a point of reward is {slope:.2f} to the reward model, so RLOO's beta of {beta:g} is one of "
             f"{aims[1].beta:.2f} in true reward: the best policy has KL {aims[1].kl:.2f} and reward "
             f"{aims[1].reward:.2f} there, and {aims[0].kl:.2f} and {aims[0].reward:.2f} at {beta:g}"),
    ]  # fmt: skip


def models_in_memory(run: Run) -> list[str]:
    """Those that a run holds while it updates; numbers of a reference that were stored need none."""
    named = {
        "policy": True,
        "reference": run.rollout is not None and "reference" in run.objective.reads,
        "reward model": any(reward.model for reward in reward_tables(run)),
        "value model": isinstance(run.objective, PPO),
    }
    return [name for name, needed in named.items() if needed]


def ceiling(reference: Reference, after: Mapping[str, Reviews]) -> ExtraChart:
    """The best reward at every distance, and the models below it."""
    frontier = Frontier.sampled(reference.reviews.reward)
    best = [frontier.at_beta(float(beta)) for beta in BETAS]
    curves = [Curve("The best possible", tuple(p.kl for p in best), tuple(p.reward for p in best)),
              Curve("before", (0.0,), (float(reference.reviews.reward.mean()),))]  # fmt: skip
    curves += [Curve(name, (float(of.log_ratio.mean()),), (float(of.reward.mean()),)) for name, of in after.items()]
    note = "The line is the reference times exp(reward / beta) for every beta, from the reference's own reviews: no " \
        "policy has more reward at its distance."  # fmt: skip
    return ExtraChart("Reward against distance", "KL to the reference, nats", "true reward", tuple(curves), note)


def add_to_page(comparison: Comparison, record: Path, model: str) -> Path:
    """Put the comparison into the record of one of its models, and write its page again."""
    from preftune.report import page

    rows = tuple((line.name, *line.values, line.meaning) for line in comparison.lines)
    note = "Brackets hold 95 % bootstrap intervals. The reward is known here, so the best possible result is known too."
    table = ExtraTable("What changed", ("", *comparison.models, "what it means"), rows, note)
    own = comparison.models.index(model)
    samples = tuple(Rewrite(of.prompt, of.texts[0], of.texts[own]) for of in comparison.samples)
    extras = Extras((table,), samples, (comparison.ceiling,))
    files.write_json(record / "extras.json", msgspec.to_builtins(extras))
    files.write(record / "report.html", page([Record.open(record)]))
    return record / "report.html"


def _verdict(margin: float) -> float:
    """1 where the margin is above 0, 0 where it is below, one half at 0."""
    return 0.5 + 0.5 * float(np.sign(margin))


def _with_interval(value: float, bounds: tuple[float, float], digits: int = 2, *, sign: bool = False) -> str:
    low, high = bounds
    return f"{number(value, digits, sign=sign)} [{number(low, digits, sign=sign)}, {number(high, digits, sign=sign)}]"


def _mean(values: np.ndarray, digits: int = 2, *, sign: bool = False) -> str:
    return _with_interval(values.mean(), interval(np.mean, values), digits, sign=sign)


def _change(values: Sequence[float | None]) -> str:
    return _mean(np.array([[value for value in values if value is not None]]), sign=True)


def _percent(part: float, bounds: tuple[float, float] | None = None) -> str:
    brackets = f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if bounds else ""
    return f"{share(part)}{brackets}"

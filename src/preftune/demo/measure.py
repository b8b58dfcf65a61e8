"""What tuning did to a model of the readable world: true reward, KL, and how far both are from the best possible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from msgspec import Struct

from preftune import files
from preftune.demo import readable
from preftune.events import Note, emit
from preftune.frontier.measure import Frontier, interval, win_rate
from preftune.record.reader import Extras, ExtraTable, HeldOutRow, Record, Rewrite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from preftune.demo.sampling import Drawn
    from preftune.model.policy import Policy

DRAWN_REFERENCE, DRAWN = 2048, 1024  # reviews of each dish drawn from either model; the first decide the ceiling
LONGEST = 32  # tokens of a review; three full clauses have 20
SHOWN = 3  # prompts of which a review is shown
ROUNDS = 200  # resamples behind each interval


class Line(Struct, frozen=True):
    """One figure as it is printed: its name, its value before and after, and what it means."""

    name: str
    before: str
    after: str
    meaning: str


class Comparison(Struct, frozen=True):
    """The reference against the tuned model."""

    lines: tuple[Line, ...]
    ceiling: ExtraTable
    samples: tuple[Rewrite, ...]


class Reviews(Struct, frozen=True):
    """Reviews drawn from one model: (groups, responses) each."""

    reward: np.ndarray
    tokens: np.ndarray
    well_formed: np.ndarray

    @classmethod
    def of(cls, drawn: Sequence[Drawn]) -> Reviews:
        """Count the rewards and tokens of drawn texts."""
        return cls(
            np.array([[readable.reward(text) for text in sample.texts] for sample in drawn], float),
            np.array([[len(ids) for ids in sample.ids] for sample in drawn], float),
            np.array([[readable.well_formed(text) for text in sample.texts] for sample in drawn], float),
        )


def load_module(path: Path) -> PreTrainedModel:
    """The model of a folder, in fp32 on the CPU."""
    import torch

    from preftune.model.load import load_model

    device = torch.device("cpu")
    return load_model(str(path), revision=None, weights="float32", device=device, location=str(path)).module


def compare(
    tuned: Path, reference: Path, dishes: Sequence[str], judged: Sequence[readable.Judged], seed: int
) -> Comparison:
    """Measure a tuned model, the record of its run, against its reference, a model's folder.

    dishes: those whose reviews are drawn; judged: the pairs that the run was evaluated on.
    """
    from preftune.demo.sampling import draw
    from preftune.model.policy import wrap
    from preftune.tokens.tokenizer import load_tokenizer

    modules = load_module(reference), load_module(tuned / "model")
    tokenizer = load_tokenizer(str(reference))
    prompts = [readable.prompt(dish) for dish in dishes]
    from_reference, from_tuned = (
        draw(module, tokenizer, prompts, count, longest=LONGEST, seed=10 * seed + offset, stage=f"drawing from {name}")
        for module, count, offset, name in zip(
            modules, (DRAWN_REFERENCE, DRAWN), (2, 3), ("the reference", "the tuned model"), strict=True)
    )  # fmt: skip
    samples = []
    for offset, prompt in enumerate(prompts[:SHOWN], 4):  # the same random numbers for both; no text is picked by hand
        first, second = (
            draw(module, tokenizer, [prompt], 1, longest=LONGEST, seed=10 * seed + offset)[0].texts[0].strip()
            for module in modules
        )
        samples.append(Rewrite(prompt, first, second))
    emit(Note("measuring"))
    log_ratio = _log_ratio(from_tuned, *(wrap(module, "auto")[0] for module in modules))
    before, after = Reviews.of(from_reference), Reviews.of(from_tuned)
    figures = lines(before, after, log_ratio, Record.open(tuned).rows, judged)
    return Comparison(tuple(figures), ceiling(before, after, log_ratio), tuple(samples))


def _log_ratio(drawn: Sequence[Drawn], before: Policy, after: Policy) -> np.ndarray:
    """(groups, responses), in nats."""
    import torch

    from preftune.pack.batch import collate
    from preftune.rows.row import Place
    from preftune.tokens.groups import TokenGroup

    log_ratios = []
    for sample in drawn:
        source = Place(sample.prompt, 1)
        group = TokenGroup(prompt=sample.prompt_ids, responses=sample.ids, kind="demo", place=source)
        batch = collate([group], before.device)
        with torch.no_grad():
            log_ratios.append(batch.sum(after.token_logp(batch) - before.token_logp(batch)).double().cpu().numpy())
    return np.stack(log_ratios)


def lines(
    before: Reviews, after: Reviews, log_ratio: np.ndarray, rows: Sequence[HeldOutRow],
    judged: Sequence[readable.Judged],
) -> list[Line]:  # fmt: skip
    """Every figure with its 95 % interval and its meaning.

    log_ratio: (groups, responses) of the reviews after; rows: the run's last evaluation, of the `judged` pairs.
    """
    both = np.stack([after.reward, log_ratio], -1)

    def gap(reference: np.ndarray, tuned: np.ndarray) -> float:
        return Frontier.sampled(reference).gap(tuned[..., 0].mean(), tuned[..., 1].mean())

    best = Frontier.sampled(before.reward).at_kl(log_ratio.mean())
    reached = (after.reward.mean() - before.reward.mean()) / (best.reward - before.reward.mean())
    right = np.array([[_verdict(row.margin or 0.0) for row in rows]])
    most = np.mean([_verdict(readable.reward(pair.chosen) - readable.reward(pair.rejected)) for pair in judged])
    gap_interval = interval(gap, before.reward, both, rounds=ROUNDS)
    wins = interval(win_rate, after.reward, before.reward, rounds=ROUNDS)
    return [
        Line("true reward", _mean(before.reward), _mean(after.reward),
             "kind words minus harsh words, mean over reviews of dishes that no pair was about"),
        Line("win rate", "50 %", _percent(win_rate(after.reward, before.reward), wins),
             "how often a review of the tuned model has more reward than one of the reference; a tie counts half"),
        Line("KL to the reference", "0", f"{_mean(log_ratio)} nats",
             "how far the model moved from the reference: mean log-ratio of its own reviews"),
        Line("best reward at this KL", "", f"{best.reward:.2f}",
             f"no policy at this KL has more: the reference times exp(reward / {best.beta:.2f}), estimated from its "
             f"reviews by importance sampling; effective sample size {best.effective:,.0f}"),
        Line("short of the best by", "", _with_interval(gap(before.reward, both), gap_interval),
             f"the run gained {reached:.0%} of the reward that can be gained at its KL"),
        Line("held-out accuracy", "50 %", _percent(right.mean(), interval(np.mean, right, rounds=ROUNDS)),
             f"how often the model's log-ratio ranks {len(rows)} new pairs as the judge did; the judge errs, and the "
             f"true reward itself gets {most:.1%}"),
        Line("logp of chosen", "", _change([row.chosen_logp_change for row in rows]),
             "change of the log-probability of the judge's choices in those pairs, in nats; it may well fall"),
        Line("logp of rejected", "", _change([row.rejected_logp_change for row in rows]),
             "the same for what the judge rejected; DPO moves the difference of the two"),
        Line("tokens", _mean(before.tokens, 1), _mean(after.tokens, 1),
             "length of a review; three kind clauses earn more than one"),
        Line("well formed", _percent(before.well_formed.mean()), _percent(after.well_formed.mean()),
             "reviews that keep to the grammar of the SFT texts"),
    ]  # fmt: skip


def ceiling(before: Reviews, after: Reviews, log_ratio: np.ndarray) -> ExtraTable:
    """The best reward at several distances, and this run among them."""
    frontier = Frontier.sampled(before.reward)
    points = [frontier.at_beta(beta) for beta in (4.0, 2.0, 1.0, 0.7, 0.5, 0.35)]
    rows = [(f"{p.beta:g}", f"{p.kl:.2f}", f"{p.reward:.2f}", f"{p.effective:.0f}") for p in points]
    rows.append(("this run", f"{log_ratio.mean():.2f}", f"{after.reward.mean():.2f}", ""))
    note = (
        "The reference times exp(reward / beta), from the reference's own reviews: no policy has more reward at its KL."
    )
    return ExtraTable("The best possible", ("beta", "KL, nats", "reward", "effective draws"), tuple(rows), note)


def add_to_page(comparison: Comparison, record: Path) -> Path:
    """Put the comparison into a record and write its page again."""
    from preftune.report import page

    rows = tuple((line.name, line.before, line.after, line.meaning) for line in comparison.lines)
    note = "Brackets hold 95 % bootstrap intervals. The reward is known here, so the best possible result is known too."
    table = ExtraTable("What changed", ("", "before", "after", "what it means"), rows, note)
    extras = Extras((table, comparison.ceiling), comparison.samples)
    files.write_json(record / "extras.json", msgspec.to_builtins(extras))
    files.write(record / "report.html", page([Record.open(record)]))
    return record / "report.html"


def _verdict(margin: float) -> float:
    """1 where the margin is above 0, 0 where it is below, one half at 0."""
    return 0.5 + 0.5 * float(np.sign(margin))


def _with_interval(value: float, bounds: tuple[float, float], digits: int = 2, sign: str = "") -> str:
    low, high = bounds
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def _mean(values: np.ndarray, digits: int = 2, sign: str = "") -> str:
    return _with_interval(values.mean(), interval(np.mean, values, rounds=ROUNDS), digits, sign)


def _change(values: Sequence[float | None]) -> str:
    return _mean(np.array([[value for value in values if value is not None]]), sign="+")


def _percent(share: float, bounds: tuple[float, float] | None = None) -> str:
    brackets = f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if bounds else ""
    return f"{100 * share:.1f} %{brackets}"

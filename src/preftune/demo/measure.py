"""What tuning did to a model of the readable world: true reward, distance, and how far both are from the best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from msgspec import Struct

from preftune import files
from preftune.demo import readable
from preftune.frontier.measure import Frontier, interval, win_rate
from preftune.record.reader import Extras, ExtraTable, HeldOutRow, Record, Rewrite
from preftune.record.show import Show

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


def loaded(path: Path) -> PreTrainedModel:
    """The model of a folder."""
    import torch

    from preftune.model.load import load_model

    return load_model(str(path), revision=None, weights="float32", device=torch.device("cpu"), location=str(path))


def compare(
    tuned: Path, reference: Path, dishes: Sequence[str], judged: Sequence[readable.Judged], seed: int, show: Show
) -> Comparison:
    """Measure a tuned model, the record of its run, against its reference, a model's folder.

    dishes: those whose reviews are drawn; judged: the pairs that the run was evaluated on.
    """
    from preftune.demo.sampling import draw
    from preftune.model.policy import wrap
    from preftune.tokens.tokenizer import load_tokenizer

    models = loaded(reference), loaded(tuned / "model")
    tokenizer = load_tokenizer(str(reference))
    prompts = [readable.prompt(dish) for dish in dishes]
    drawn = [
        draw(module, tokenizer, prompts, count, longest=LONGEST, seed=10 * seed + own,
             show=lambda done, total, name=name: show(f"drawing from {name}", done, total))
        for own, count, name, module in zip(
            (2, 3), (DRAWN_REFERENCE, DRAWN), ("the reference", "the tuned model"), models, strict=True)
    ]  # fmt: skip
    samples = []
    for own, prompt in enumerate(prompts[:SHOWN], 4):  # the same random numbers for both, and no choice among several
        one, other = (
            draw(module, tokenizer, [prompt], 1, longest=LONGEST, seed=10 * seed + own)[0] for module in models
        )
        samples.append(Rewrite(prompt, one.texts[0].strip(), other.texts[0].strip()))
    show("measuring")
    before, after = (wrap(module, "auto")[0] for module in models)
    theirs, ours = (_counted(mine) for mine in drawn)
    log_ratio = _log_ratio(drawn[1], before, after)
    told = lines(theirs, ours, log_ratio, Record.open(tuned).rows, judged)
    return Comparison(tuple(told), ceiling(theirs, ours, log_ratio), tuple(samples))


def _counted(drawn: Sequence[Drawn]) -> Reviews:
    return Reviews(
        np.array([[readable.reward(text) for text in one.texts] for one in drawn], float),
        np.array([[len(ids) for ids in one.ids] for one in drawn], float),
        np.array([[readable.well_formed(text) for text in one.texts] for one in drawn], float),
    )


def _log_ratio(drawn: Sequence[Drawn], before: Policy, after: Policy) -> np.ndarray:
    """(groups, responses), in nats."""
    import torch

    from preftune.pack.batch import collate
    from preftune.rows.row import Place
    from preftune.tokens.groups import TokenGroup

    found = []
    for one in drawn:
        group = TokenGroup(prompt=one.prompt_ids, responses=one.ids, kind="demo", place=Place(one.prompt, 1))
        batch = collate([group], before.device)
        with torch.no_grad():
            found.append(batch.sum(after.token_logp(batch) - before.token_logp(batch)).double().cpu().numpy())
    return np.stack(found)


def lines(
    before: Reviews,
    after: Reviews,
    log_ratio: np.ndarray,
    rows: Sequence[HeldOutRow],
    judged: Sequence[readable.Judged],
) -> list[Line]:
    """Every figure with its 95 % interval and its meaning.

    log_ratio: (groups, responses) of the reviews after; rows: the run's last evaluation, of the `judged` pairs.
    """
    both = np.stack([after.reward, log_ratio], -1)

    def gap(reference: np.ndarray, tuned: np.ndarray) -> float:
        return Frontier.sampled(reference).gap(tuned[..., 0].mean(), tuned[..., 1].mean())

    best = Frontier.sampled(before.reward).at_kl(log_ratio.mean())
    reached = (after.reward.mean() - before.reward.mean()) / (best.reward - before.reward.mean())
    right = np.array([[_right(row.margin or 0.0) for row in rows]])
    most = np.mean([_right(readable.reward(pair.chosen) - readable.reward(pair.rejected)) for pair in judged])
    between = interval(gap, before.reward, both, rounds=ROUNDS)
    return [
        Line("true reward", _mean(before.reward), _mean(after.reward),
             "kind words minus harsh words, mean over reviews of dishes that no pair was about"),
        Line("win rate", "50 %", _percent(win_rate(after.reward, before.reward),
                                          interval(win_rate, after.reward, before.reward, rounds=ROUNDS)),
             "how often a review of the tuned model has more reward than one of the reference; a tie counts half"),
        Line("KL to the reference", "0", f"{_mean(log_ratio)} nats",
             "how far the model went to get there: mean log-ratio of its own reviews"),
        Line("best reward at this KL", "", f"{best.reward:.2f}",
             f"what no policy this near can beat: the reference times exp(reward / {best.beta:.2f}), estimated from "
             f"its reviews by importance sampling; effective sample size {best.effective:,.0f}"),
        Line("short of the best by", "", _with(gap(before.reward, both), between),
             f"the run gained {reached:.0%} of the reward that was to be had at its KL"),
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
             "reviews that keep to the grammar that the model was taught"),
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
    note = (
        "Brackets hold 95 % bootstrap intervals. The reward is known here, so the result can be held against the best."
    )
    table = ExtraTable("What changed", ("", "before", "after", "what it means"), rows, note)
    extras = Extras((table, comparison.ceiling), comparison.samples)
    files.write_json(record / "extras.json", msgspec.to_builtins(extras))
    files.write(record / "report.html", page([Record.open(record)]))
    return record / "report.html"


def _right(margin: float) -> float:
    return 0.5 + 0.5 * float(np.sign(margin))


def _with(value: float, between: tuple[float, float], digits: int = 2) -> str:
    return f"{value:.{digits}f} [{between[0]:.{digits}f}, {between[1]:.{digits}f}]"


def _mean(values: np.ndarray, digits: int = 2) -> str:
    return _with(values.mean(), interval(np.mean, values, rounds=ROUNDS), digits)


def _percent(share: float, between: tuple[float, float] | None = None) -> str:
    return f"{share:.1%}".replace("%", " %") + (
        f" [{between[0]:.1%}, {between[1]:.1%}]".replace("%", "") if between else ""
    )


def _change(values: Sequence[float | None]) -> str:
    found = np.array([[value for value in values if value is not None]])
    low, high = interval(np.mean, found, rounds=ROUNDS)
    return f"{found.mean():+.2f} [{low:+.2f}, {high:+.2f}]"

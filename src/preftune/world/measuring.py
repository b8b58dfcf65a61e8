"""What tuning did to a model of the readable world: true reward, distance, and how far both are from the best."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from preftune import files
from preftune.frontier.measure import Frontier, interval, win_rate
from preftune.record.read import ExtraTable, Extras, Record, Rewrite
from preftune.train.show import Show
from preftune.world import readable

if TYPE_CHECKING:
    from preftune.model.policy import Policy
    from preftune.world.sampling import Drawn

DRAWN = 512  # reviews of each dish drawn from either model
LONGEST = 32
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
    """Reviews drawn from one model: (groups, responses) each. log_ratio: tuned minus reference, in nats."""

    reward: np.ndarray
    log_ratio: np.ndarray
    tokens: np.ndarray
    well_formed: np.ndarray


def loaded(path: Path) -> Policy:
    """A model's folder, as training would use it."""
    import torch

    from preftune.model.load import load_model
    from preftune.model.policy import wrap

    device = torch.device("cpu")
    return wrap(load_model(str(path), revision=None, weights="float32", device=device, where=str(path)), "auto")[0]


def compare(tuned: Path, reference: Path, dishes: Sequence[str], seed: int, show: Show) -> Comparison:
    """Measure a tuned model, the record of its run, against its reference, a model's folder."""
    from preftune.data.tokens import load_tokeniser
    from preftune.world.sampling import draw

    before, after = loaded(reference), loaded(tuned / "model")
    tokeniser = load_tokeniser(str(reference), None)
    prompts = [readable.prompt(dish) for dish in dishes]
    drawn = []
    for policy, name, own in ((before, "the reference", 2), (after, "the tuned model", 3)):
        drawn.append(
            draw(policy.module, tokeniser, prompts, DRAWN, longest=LONGEST, seed=seed * 10 + own,
                 show=lambda done, total, name=name: show(f"drawing from {name}", done, total))
        )  # fmt: skip
    show("measuring")
    reviews = [_measured(mine, before, after) for mine in drawn]
    samples = []
    for number, prompt in enumerate(prompts[:3]):  # the same random numbers for both, and no choice among several
        one, other = (draw(policy.module, tokeniser, [prompt], 1, longest=LONGEST, seed=seed * 10 + 4 + number)[0].texts[0]
                      for policy in (before, after))  # fmt: skip
        samples.append(Rewrite(prompt, one.strip(), other.strip()))
    return Comparison(tuple(lines(*reviews, Record.open(tuned))), ceiling(*reviews), tuple(samples))


def _measured(drawn: Sequence[Drawn], before: Policy, after: Policy) -> Reviews:
    import torch

    from preftune.data.groups import TokenGroup
    from preftune.data.rows import Place
    from preftune.pack.batch import collate

    log_ratio = []
    for one in drawn:
        group = TokenGroup(prompt=one.prompt_ids, responses=one.ids, kind="demo", place=Place(one.prompt, 1))
        batch = collate([group], before.device)
        with torch.no_grad():
            log_ratio.append(batch.sum(after.token_logp(batch) - before.token_logp(batch)).double().cpu().numpy())
    return Reviews(
        np.array([[readable.reward(text) for text in one.texts] for one in drawn], float),
        np.stack(log_ratio),
        np.array([[len(ids) for ids in one.ids] for one in drawn], float),
        np.array([[readable.well_formed(text) for text in one.texts] for one in drawn], float),
    )


def lines(before: Reviews, after: Reviews, record: Record) -> list[Line]:
    """Every figure with its 95 % interval and its meaning."""
    both = np.stack([after.reward, after.log_ratio], -1)

    def gap(reference: np.ndarray, tuned: np.ndarray) -> float:
        return Frontier.sampled(reference).gap(tuned[..., 0].mean(), tuned[..., 1].mean())

    best = Frontier.sampled(before.reward).at_kl(after.log_ratio.mean())
    reached = (after.reward.mean() - before.reward.mean()) / (best.reward - before.reward.mean())
    judged = record.rows
    right = np.array([[float((row.margin or 0) > 0) for row in judged]])
    per = f"mean of {before.reward.size:,} reviews of dishes that no pair was about"
    return [
        Line("true reward", _mean(before.reward), _mean(after.reward),
             f"kind words minus harsh words, {per}"),
        Line("win rate", "50 %", _percent(win_rate(after.reward, before.reward),
                                          interval(win_rate, after.reward, before.reward, rounds=ROUNDS)),
             "how often a review of the tuned model has more reward than one of the reference; a tie counts half"),
        Line("KL to the reference", "0", f"{_mean(after.log_ratio)} nats",
             "how far the model went to get there: mean log-ratio of its own reviews"),
        Line("best reward at this KL", "", f"{best.reward:.2f}",
             f"what no policy this near can beat: the reference times exp(reward / {best.beta:.2f}), estimated from its "
             f"reviews by importance sampling; they are worth {best.effective:,.0f} draws"),
        Line("short of the best by", "", _with(gap(before.reward, both), interval(gap, before.reward, both, rounds=ROUNDS)),
             f"the run gained {reached:.0%} of the reward that was to be had at its KL"),
        Line("held-out accuracy", "50 %", _percent(right.mean(), interval(np.mean, right, rounds=ROUNDS)),
             f"how often the model's log-ratio ranks {len(judged)} new pairs as the judge did; the judge errs, and the "
             f"true reward itself gets {_ceiling_of_accuracy(record):.0%}"),
        Line("logp of chosen", "", _change(record, "chosen_logp"),
             "change of the log-probability of the judge's choices in those pairs, in nats; it may well fall"),
        Line("logp of rejected", "", _change(record, "rejected_logp"),
             "the same for what the judge rejected; DPO moves the difference of the two"),
        Line("tokens", _mean(before.tokens, 1), _mean(after.tokens, 1),
             "length of a review; three kind clauses earn more than one"),
        Line("well formed", _percent(before.well_formed.mean()), _percent(after.well_formed.mean()),
             "reviews that keep to the grammar that the model was taught"),
    ]  # fmt: skip


def ceiling(before: Reviews, after: Reviews) -> ExtraTable:
    """The best reward at several distances, and this run among them."""
    frontier = Frontier.sampled(before.reward)
    points = [frontier.at_beta(beta) for beta in (4.0, 2.0, 1.0, 0.7, 0.5, 0.35)]
    rows = [(f"{p.beta:g}", round(p.kl, 3), round(p.reward, 3), round(p.effective)) for p in points]
    rows.append(("this run", round(float(after.log_ratio.mean()), 3), round(float(after.reward.mean()), 3), None))
    note = "The reference times exp(reward / beta), from the reference's own reviews: no policy has more reward at its KL."
    return ExtraTable("The best possible", ("beta", "KL, nats", "reward", "effective draws"), tuple(rows), note)


def add_to_page(comparison: Comparison, record: Path) -> Path:
    """Put the comparison into a record and write its page again."""
    from preftune.report import page

    rows = tuple((line.name, line.before, line.after, line.meaning) for line in comparison.lines)
    note = "Brackets hold 95 % bootstrap intervals. The reward is known here, so the result can be held against the best."
    table = ExtraTable("What changed", ("", "before", "after", "what it means"), rows, note)
    extras = Extras((table, comparison.ceiling), comparison.samples)
    files.write_json(record / "extras.json", files.built(extras))
    files.write(record / "report.html", page([Record.open(record)]))
    return record / "report.html"


def _with(value: float, between: tuple[float, float], digits: int = 2) -> str:
    return f"{value:.{digits}f} [{between[0]:.{digits}f}, {between[1]:.{digits}f}]"


def _mean(values: np.ndarray, digits: int = 2) -> str:
    return _with(values.mean(), interval(np.mean, values, rounds=ROUNDS), digits)


def _percent(share: float, between: tuple[float, float] | None = None) -> str:
    return f"{share:.1%}".replace("%", " %") + (f" [{between[0]:.1%}, {between[1]:.1%}]".replace("%", "") if between else "")


def _change(record: Record, side: str) -> str:
    values = [v for row in record.rows if (v := (row.chosen_logp_change if side == "chosen_logp" else row.rejected_logp_change)) is not None]
    return f"{statistics.fmean(values):+.2f}"

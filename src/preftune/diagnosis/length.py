"""Length bias: the reward of a response is a sum over its tokens, so length is the shortest way to a large margin.

It is measured within pairs: over all responses, everything that falls with the number of tokens looks like length.

Park et al. 2024 (arXiv 2403.19159) and the SimPO paper (arXiv 2405.14734) show the effect and two of its remedies.
"""

from __future__ import annotations

import math

from preftune.diagnosis.finding import SURE, Finding, number, share
from preftune.diagnosis.objective_facts import imitates, is_sft, learner, says_scores
from preftune.record.reader import Record, prompts_of
from preftune.record.statistics import slope, student_tail

# Correlation within pairs of margin and difference of tokens; a longer response is often a little better, too.
CORRELATED, STRONGLY_CORRELATED = 0.3, 0.5
CLEAR = 4.0  # standard errors: what 768 honest pairs teach about length stays below
# Chosen is a little longer in most preference sets; from two in three on, length alone predicts the label.
CHOSEN_LONGER = 0.65


def reward_follows_length(record: Record) -> Finding | None:
    """Within pairs, the regression of the margin on the difference of tokens, through the origin."""
    rows = [row for row in record.rows if row.margin is not None and row.surplus is not None]
    rows = [row for row in rows if math.isfinite(row.margin or 0.0) and math.isfinite(row.surplus or 0.0)]
    fit = slope([row.margin or 0.0 for row in rows], [row.surplus or 0.0 for row in rows], prompts_of(rows))
    if fit is None or is_sft(record):
        return None  # under SFT every token gains, which is no preference
    per_token, correlation = fit
    z = abs(per_token.value) / per_token.error if per_token.error else math.inf
    if not per_token.certain or not abs(correlation) >= CORRELATED or z < CLEAR:
        return None
    longer, sure = correlation > 0, len(rows) >= SURE and not imitates(record)
    preferred = "long" if longer else "short"
    return Finding(
        code="length.reward",
        severity="serious" if abs(correlation) >= STRONGLY_CORRELATED and sure else "warn",
        title=f"The reward {'grows' if longer else 'falls'} with length",
        evidence=f"In {number(len(rows))} held-out pairs the margin changes by {number(per_token.value, 2, sign=True)} "
        f"± {number(per_token.half_width(), 2)} nats with each token by which chosen is longer (correlation "
        f"{number(correlation, 2)}).",
        meaning=f"Part of what was learned is to prefer {preferred} responses as such. {learner(record)} will tend to "
        f"write {preferred}er responses whether or not they are better.",
        remedy="Balance the pairs first, so that chosen is longer in about half of them, and drop pairs that differ in "
        "length alone." + ("" if says_scores(record) else _objectives(longer)),
        p=2 * student_tail(z, max(1, per_token.prompts - 1)),
    )


def _objectives(longer: bool) -> str:
    """What objectives do about length."""
    return (
        ' objective = "ln_dpo" divides by length, which heals the damage but not the preference'
        + ('; "r_dpo" subtracts it: raise objective.alpha from 0.01. ' if longer else ". ")
        + '"simpo" needs a learning rate of its own.'
    )


def data_prefer_long(record: Record) -> Finding | None:
    """The share of training pairs whose chosen response is the longer one."""
    longer, lengths = record.data.chosen_longer, record.data.lengths
    if longer is None or longer < CHOSEN_LONGER:
        return None
    chosen, rejected = (spread.median if (spread := lengths.get(side)) else None for side in ("chosen", "rejected"))
    medians = f" Median length: {number(chosen)} tokens chosen, {number(rejected)} rejected."
    return Finding(
        code="length.data",
        severity="info",
        title="The data prefer long responses",
        evidence=f"In {share(longer)} of the training pairs the chosen response has more tokens."
        + (medians if chosen is not None and rejected is not None else ""),
        meaning="Length alone predicts the label more often than not, so "
        + ("a score" if says_scores(record) else "an objective that sums over tokens")
        + " can learn length in place of quality.",
        remedy="Balance the pairs so that chosen is longer in about half of them.",
    )

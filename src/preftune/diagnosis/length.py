"""Length bias: the reward of a response is a sum over its tokens, so length is the shortest way to a large margin.

Park et al. 2024 (arXiv 2403.19159) and the SimPO paper (arXiv 2405.14734) show the effect and two of its remedies.
"""

from __future__ import annotations

import math

from preftune.diagnosis.finding import NOISE, SURE, Finding, number, share, share_error
from preftune.diagnosis.objective_facts import imitates, is_sft
from preftune.record.reader import Record

# Length and true quality are rank correlated up to this too: a longer response is often a little better.
CORRELATED, STRONGLY_CORRELATED = 0.3, 0.5
# Accuracy may differ a little because the pairs with a short chosen response are the harder ones.
ACCURACY_GAP = 0.15
# Chosen is a little longer in most preference sets; from two in three on, length alone predicts the label.
CHOSEN_LONGER = 0.65


def reward_follows_length(record: Record) -> Finding | None:
    """The rank correlation of log-ratio and tokens after training."""
    correlation, rows = record.end.get("reward_length_correlation"), record.end.get("rows")
    if correlation is None or not rows or is_sft(record):
        return None  # under SFT every token gains, which is no preference
    responses = record.end.get("responses") or 2 * rows
    if not abs(correlation) >= max(CORRELATED, NOISE / math.sqrt(max(1.0, responses - 1))):
        return None
    longer, sure = correlation > 0, rows >= SURE and not imitates(record)
    preferred = "long" if longer else "short"
    return Finding(
        code="length.reward",
        severity="serious" if abs(correlation) >= STRONGLY_CORRELATED and sure else "warn",
        title=f"The reward {'grows' if longer else 'falls'} with length",
        evidence=f"Across {number(responses)} held-out responses the rank correlation between the learned reward and "
        f"the number of tokens is {number(correlation, 2)} (0 would be no relation).",
        meaning=f"Part of what was learned is to prefer {preferred} responses as such. The tuned model will tend to "
        f"write {preferred}er responses whether or not they are better.",
        remedy="Use an objective that divides by length (length-normalized DPO, SimPO)"
        + (" or that subtracts it (R-DPO, LD-DPO)." if longer else "; balance the lengths of chosen and rejected."),
    )


def accurate_only_when_longer(record: Record) -> Finding | None:
    """Accuracy on pairs whose chosen response is the longer one against accuracy on the others."""
    longer, shorter = record.end.get("accuracy_chosen_longer"), record.end.get("accuracy_chosen_shorter")
    rows = record.judged
    if longer is None or shorter is None or not rows or is_sft(record):
        return None
    pairs = [row for row in record.rows if row.accuracy is not None and row.margin is not None]
    surplus = [(row.chosen_tokens or 0) - (row.rejected_tokens or 0) for row in pairs]
    longer_error = share_error(longer, sum(tokens > 0 for tokens in surplus) or rows / 2)
    shorter_error = share_error(shorter, sum(tokens < 0 for tokens in surplus) or rows / 2)
    gap, error = abs(longer - shorter), math.hypot(longer_error, shorter_error)
    if not gap >= max(ACCURACY_GAP, NOISE * error):
        return None
    right, wrong, lowest, lowest_error = (
        ("longer", "short", shorter, shorter_error) if longer > shorter else ("shorter", "long", longer, longer_error)
    )
    below_chance = lowest < 0.5 - NOISE * lowest_error
    return Finding(
        code="length.accuracy",
        severity="serious" if below_chance and rows >= SURE else "warn",
        title=f"Right mostly where the chosen response is {right}",
        evidence=f"Held-out accuracy is {share(longer)} where chosen is the longer response and {share(shorter)} "
        f"where it is the shorter one, a gap of {number(100 * gap, 0)} ± {number(100 * error, 0)} points.",
        meaning="The two numbers would be close if the preference itself had been learned. "
        + (f"On {wrong} chosen responses the model is worse than a coin." if below_chance else
           "Some of the accuracy is length."),
        remedy=f"Read some held-out pairs whose {wrong}er response is chosen and see what was missed. Add such pairs, "
        "or take length out of the objective.",
    )  # fmt: skip


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
        meaning="Length alone predicts the label more often than not, so an objective that sums over tokens can "
        "learn length in place of quality.",
        remedy="Balance the pairs so that chosen is longer in about half of them, or take length out of the objective.",
    )

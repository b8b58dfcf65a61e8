"""Length bias: the reward of a response is a sum over its tokens, so length is the shortest way to a large margin.

Park et al. 2024 (arXiv 2403.19159) and the SimPO paper (arXiv 2405.14734) show the effect and two of its remedies.
"""

from __future__ import annotations

import math

from preftune.diagnosis.finding import NOISE, Finding, number, share, share_error
from preftune.record.read import Record

# Rank correlations below this are also seen between length and true quality: longer is often a little better.
CORRELATED, STRONGLY_CORRELATED = 0.3, 0.5
# Accuracy may differ a little because the short-chosen pairs are the harder ones.
ACCURACY_GAP = 0.15
# Chosen is a little longer in most preference sets; from two in three on, length alone predicts the label.
CHOSEN_LONGER = 0.65


def reward_follows_length(record: Record) -> Finding | None:
    """The rank correlation of log-ratio and tokens after training."""
    correlation, rows = record.end.get("reward_length_correlation"), record.end.get("rows")
    if correlation is None or not rows or record.end.get("rejected_tokens") is None:
        return None  # demos alone: whatever is imitated gains with every token, and that is no preference
    responses = record.end.get("responses") or 2 * rows
    if correlation < max(CORRELATED, NOISE / math.sqrt(max(1.0, responses - 1))):
        return None
    return Finding(
        code="length.reward",
        severity="serious" if correlation >= STRONGLY_CORRELATED else "warn",
        title="The reward grows with length",
        evidence=f"Across {number(responses)} held-out responses the rank correlation between the learned reward and "
        f"the number of tokens is {number(correlation, 2)} (0 would be no relation).",
        meaning="Part of what was learned is to prefer long responses as such. The tuned model will tend to write "
        "longer responses whether or not they are better.",
        remedy="Use an objective that divides by length (length-normalised DPO, SimPO) or that subtracts it (R-DPO, "
        "LD-DPO).",
    )


def accurate_only_when_longer(record: Record) -> Finding | None:
    """Accuracy on pairs whose chosen response is the longer one against accuracy on the others."""
    longer, shorter = record.end.get("accuracy_chosen_longer"), record.end.get("accuracy_chosen_shorter")
    rows = record.end.get("rows")
    if longer is None or shorter is None or not rows:
        return None
    some_longer = sum((row.chosen_tokens or 0) > (row.rejected_tokens or 0) for row in record.rows) or rows / 2
    some_shorter = sum((row.chosen_tokens or 0) < (row.rejected_tokens or 0) for row in record.rows) or rows / 2
    gap, error = longer - shorter, math.hypot(share_error(longer, some_longer), share_error(shorter, some_shorter))
    if gap < max(ACCURACY_GAP, NOISE * error):
        return None
    worse_than_chance = shorter < 0.5 - NOISE * share_error(shorter, some_shorter)
    return Finding(
        code="length.accuracy",
        severity="serious" if worse_than_chance else "warn",
        title="Right mostly where the chosen response is longer",
        evidence=f"Held-out accuracy is {share(longer)} where chosen is the longer response and {share(shorter)} "
        f"where it is the shorter one, a gap of {number(100 * gap, 0)} ± {number(100 * error, 0)} points.",
        meaning="The two numbers would be close if the preference itself had been learned. "
        + ("On short chosen responses the model is worse than a coin." if worse_than_chance else
           "Some of the accuracy is length."),
        remedy="Read some held-out pairs whose shorter response is chosen and see what was missed. Add such pairs, or "
        "take length out of the objective.",
    )  # fmt: skip


def data_prefer_long(record: Record) -> Finding | None:
    """The share of training pairs whose chosen response is the longer one."""
    longer = record.data.chosen_longer
    if longer is None or longer < CHOSEN_LONGER:
        return None
    chosen, rejected = record.data.lengths.get("chosen"), record.data.lengths.get("rejected")
    medians = ""
    if chosen and rejected and chosen.median is not None and rejected.median is not None:
        medians = f" Median length: {number(chosen.median)} tokens chosen, {number(rejected.median)} rejected."
    return Finding(
        code="length.data",
        severity="info",
        title="The data prefer long responses",
        evidence=f"In {share(longer)} of the training pairs the chosen response has more tokens.{medians}",
        meaning="Length alone predicts the label more often than not, so an objective that sums over tokens can "
        "learn length in place of quality.",
        remedy="Balance the pairs so that chosen is longer in about half of them, or take length out of the objective.",
    )

"""The anchor and the course of training: does the run start at its reference, does it move, and how far?"""

from __future__ import annotations

import math

from preftune.diagnosis.finding import NOISE, Finding, number, share, share_error
from preftune.diagnosis.objective_facts import anchor_hint, imitates, is_sft
from preftune.record.reader import HeldOutRow, Record
from preftune.record.statistics import mean

# Where the start is the reference every margin is 0. fp32 sums differ by about 1e-4, bfloat16 sums by up to 0.1.
RESIDUAL, LARGE_RESIDUAL = 0.1, 1.0
# The first model should rank at least half of the pairs as people do, per token.
COIN = 0.5
# Per token: on average every token is 1.6 (2.7) times more or less probable than it was.
DRIFTED, FAR = 0.5, 1.0
# A margin below a twentieth of a nat changes no probability by more than 5 %.
UNMOVED = 0.05
UNMOVED_LOSS = 0.01  # relative
STEPS_TO_MOVE = 10  # a shorter run is a try-out


def not_finite(record: Record) -> Finding | None:
    """Losses, margins or gradients that are NaN or infinite."""
    keys = ("loss", "margin", "grad_norm")
    bad = [step["step"] for step in record.steps if any(not math.isfinite(step.get(key) or 0.0) for key in keys)]
    reported = [event.step for event in record.events if event.kind == "non_finite"]
    steps = sorted({int(step) for step in (*bad, *reported) if step is not None})
    if not steps:
        return None
    return Finding(
        code="anchor.not_finite",
        severity="serious",
        title="A loss or gradient was not a number",
        evidence=f"This happened in {number(len(steps))} step{'s' if len(steps) > 1 else ''}, first in step "
        f"{steps[0]}.",
        meaning="Such a step destroys the weights that it updates, so all numbers after it say nothing.",
        remedy='Go back to the last checkpoint before it. Lower optim.lr, use model.compute = "float32" to see '
        "whether precision is the cause, and look at the rows of that step.",
    )


def starts_off_zero(record: Record) -> Finding | None:
    """The margin before the first step, which is 0 where the policy still is its reference."""
    from_policy = record.setting("reference.path") in (None, record.setting("model.path"))
    margin = record.start.get("margin")
    if not from_policy or record.setting("reference.kind") != "stored":
        return None
    if margin is None or not abs(margin) >= RESIDUAL:
        return None
    return Finding(
        code="anchor.start",
        severity="serious" if abs(margin) >= LARGE_RESIDUAL else "warn",
        title="The run does not start at its reference",
        evidence=f"Before the first step the mean held-out margin is {number(margin, 3, sign=True)} nats. It must be "
        "0, because policy and reference are the same model.",
        meaning="The reference numbers come from another model, other tokens or another precision than the "
        "policy's, and the objective pulls the policy towards that difference.",
        remedy="Delete the reference store so that the reference is scored again, use one model.compute for both, and "
        "check that the model folder did not change.",
    )


def weak_reference(record: Record) -> Finding | None:
    """How often the start ranks a held-out pair as people did, per token. An anchor keeps the policy near the start."""
    if record.setting("reference.kind") == "none" or imitates(record):
        return None
    verdicts = [verdict for row in record.rows if (verdict := _start_verdict(row)) is not None]
    right = mean(verdicts)
    if right is None or right >= COIN - NOISE * share_error(right, len(verdicts)):
        return None
    return Finding(
        code="anchor.weak",
        title="The model began on the wrong side",
        evidence="Before training, the rejected response was the more probable one (per token) in "
        f"{share(1 - right)} of {number(len(verdicts))} held-out pairs.",
        meaning="The anchor holds the model near its start, and this start prefers the rejected responses.",
        remedy="First train on the chosen responses (SFT), then tune from there; or use an objective without a "
        "reference (ORPO, SimPO).",
    )


def _start_verdict(row: HeldOutRow) -> float | None:
    """1 where chosen was the more probable response per token before training, 0 where rejected was, 1/2 if equal."""
    chosen = row.chosen_logp, row.chosen_logp_change, row.chosen_tokens
    rejected = row.rejected_logp, row.rejected_logp_change, row.rejected_tokens
    start = [(x - gain) / n for x, gain, n in (chosen, rejected) if x is not None and gain is not None and n]
    return None if len(start) < 2 else 1.0 if start[0] > start[1] else 0.5 if start[0] == start[1] else 0.0


def drifted(record: Record) -> Finding | None:
    """Change of log-probability per token since the start, the larger one of chosen and rejected.

    Where the objective contains the likelihood of chosen, a rise of either is what it is for.
    """
    moves, rise_wanted = [], imitates(record)
    for side in ("chosen", "rejected"):
        change, tokens = record.end.get(f"{side}_logp_change"), record.end.get(f"{side}_tokens")
        if change is not None and tokens and not (rise_wanted and change > 0):
            moves.append((abs(change) / tokens, side, change))
    if not moves or not max(moves)[0] >= DRIFTED:
        return None
    by_token, side, change = max(moves)
    return Finding(
        code="anchor.drift",
        severity="serious" if by_token >= FAR else "warn",
        title="The model moved far from its start",
        evidence=f"Held-out {side} responses changed by {number(change, 1, sign=True)} nats, which is "
        f"{number(by_token, 2)} nats a token: on average each token is {number(math.exp(by_token), 1)} times "
        f"{'more' if change > 0 else 'less'} probable.",
        meaning="So far from the start the preferences no longer describe what the model writes, and other "
        "abilities are likely to be damaged.",
        remedy=f"Lower optim.lr, {anchor_hint(record, 'raise')}or train for fewer steps.",
    )


def stuck(record: Record) -> Finding | None:
    """Neither loss nor margin moved."""
    early, late = record.early("loss"), record.recent("loss")
    if len(record.steps) < STEPS_TO_MOVE or early is None or late is None:
        return None
    margin = _margin_gain(record)
    if abs(late - early) > UNMOVED_LOSS * abs(early) or (margin is not None and abs(margin) > UNMOVED):
        return None
    at_ln_2 = margin is not None and abs(late - math.log(2)) < 0.01
    start = " That is ln 2, the loss of a model that has learned nothing." if at_ln_2 else ""
    moved = "" if margin is None else f" The margin moved by {number(margin, sign=True)} nats."
    return Finding(
        code="anchor.stuck",
        severity="serious",
        title="Nothing was learned",
        evidence=f"The loss went from {number(early, 4)} to {number(late, 4)} in {number(len(record.steps))} "
        f"steps.{start}{moved}",
        meaning="The policy is practically the model that training began from.",
        remedy="Raise optim.lr (full fine-tuning usually takes 5e-7 to 5e-6, adapters and small models 10 to 100 "
        f"times that), {anchor_hint(record, 'lower')}or train longer.",
    )


def _margin_gain(record: Record) -> float | None:
    """How far the margin moved: on held-out rows, or else between the first and the last steps."""
    held_out, early, late = record.gain("margin"), record.early("margin"), record.recent("margin")
    if held_out is not None:
        return held_out
    return None if early is None or late is None else late - early


def no_better_than_chance(record: Record) -> Finding | None:
    """The model moved, but its held-out accuracy may be that of a coin."""
    accuracy, rows, margin = record.end.get("accuracy"), record.judged, _margin_gain(record)
    if accuracy is None or not rows or margin is None or abs(margin) <= UNMOVED or is_sft(record):
        return None
    error = share_error(accuracy, rows)
    if accuracy > COIN + NOISE * error:
        return None
    return Finding(
        code="anchor.chance",
        title="Held-out accuracy is no better than chance",
        evidence=f"It is {share(accuracy)} ± {number(100 * NOISE * error, 1)} points on {number(rows)} held-out rows.",
        meaning="What was learned on the training rows does not show on others, or too few rows are held out to "
        "show it.",
        remedy="Hold out more rows; train longer or with a higher rate; check that chosen and rejected are not "
        "swapped.",
    )

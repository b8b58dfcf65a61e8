"""The anchor and the course of training: does the run start at its reference, does it move, and how far?"""

from __future__ import annotations

import math

from preftune.diagnosis.finding import Finding, number, share
from preftune.diagnosis.objective_facts import ADD, anchor_hint, imitates, is_sft, last_resort, says_scores
from preftune.record.reader import HeldOutRow, Record, prompts_of
from preftune.record.statistics import estimate, mean

# Where the start is the reference every margin is 0. fp32 sums differ by about 1e-4, bfloat16 sums by up to 0.1.
RESIDUAL, LARGE_RESIDUAL = 0.1, 1.0
# The first model should rank at least half of the pairs as people do, per token.
COIN = 0.5
# Per token: on average every token is 1.6 (2.7) times more or less probable than it was.
DRIFTED, FAR = 0.5, 1.0
# A mean change below a twentieth of a nat changes no probability by more than 5 %.
UNMOVED = 0.05
UNLIKE = 0.5  # nats a response, root mean square; a copy in another precision differs by 0.1 at most
UNMOVED_LOSS = 0.01  # relative
FEW_STEPS = 10  # a shorter run is a try-out


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
    """The log-ratios before the first step, which are 0 where the policy still is its reference."""
    residual, described = _residual(record)
    if not _same_model(record) or record.setting("reference.kind") != "stored" or not residual >= RESIDUAL:
        return None
    return Finding(
        code="anchor.start",
        severity="serious" if residual >= LARGE_RESIDUAL else "warn",
        title="The run does not start at its reference",
        evidence=f"Before the first step {described}. It must be 0, because policy and reference are the same model.",
        meaning="The reference numbers come from another model, other tokens or another precision than the "
        "policy's, and the objective pulls the policy towards that difference.",
        remedy="Delete the reference store so that the reference is scored again, use one model.compute for both, and "
        "check that the model folder did not change.",
    )


def foreign_reference(record: Record) -> Finding | None:
    """The distance of the start from a reference that is another model."""
    residual, described = _residual(record)
    if _same_model(record) or record.setting("reference.kind") != "stored" or not residual >= UNLIKE:
        return None
    return Finding(
        code="anchor.foreign",
        title="The reference is another model than the start",
        evidence=f"Before the first step {described}.",
        meaning="The objective pulls the policy towards the reference's likes and dislikes as well as towards the "
        "labels: part of each margin is what the two models disagree on.",
        remedy="Use the model that training begins from as reference (leave reference.path out), unless the other one "
        "is known to be better at this task and of the same kind.",
    )


def _same_model(record: Record) -> bool:
    return record.setting("reference.path") in (None, record.setting("model.path"))


def _residual(record: Record) -> tuple[float, str]:
    """Size of the log-ratios before the first step, in nats a response, and in words; the margin's in older records."""
    size, margin = record.start.get("log_ratio_rms"), record.start.get("margin")
    if size is not None:
        return size, f"the held-out log-ratios are {number(size, 3)} nats, root mean square"
    if margin is not None:
        return abs(margin), f"the mean held-out margin is {number(margin, 3, sign=True)} nats"
    return 0.0, ""


def weak_reference(record: Record) -> Finding | None:
    """How often the start ranks a held-out pair as people did, per token. An anchor keeps the policy near the start."""
    if record.setting("reference.kind") == "none" or imitates(record):
        return None
    rows = [row for row in record.rows if _start_verdict(row) is not None]
    right = estimate([_start_verdict(row) or 0.0 for row in rows], prompts_of(rows), share=True)
    if right is None or right.value >= COIN:
        return None
    return Finding(
        code="anchor.weak",
        title="The model began on the wrong side",
        evidence="Before training, the rejected response was the more probable one (per token) in "
        f"{share(1 - right.value)} ± {number(100 * right.half_width(), 1)} points of {number(right.rows)} held-out "
        "pairs.",
        meaning="The anchor holds the model near its start, and this start prefers the rejected responses.",
        remedy='First train on the chosen responses (objective = "nll"), then tune from there; or use '
        'objective = "orpo", which does both at once.',
        p=right.p_below(COIN),
    )


def _start_verdict(row: HeldOutRow) -> float | None:
    """1 where chosen was the more probable response per token before training, 0 where rejected was, 1/2 if equal."""
    chosen = row.chosen_logp, row.chosen_logp_change, row.chosen_tokens
    rejected = row.rejected_logp, row.rejected_logp_change, row.rejected_tokens
    start = [(x - gain) / n for x, gain, n in (chosen, rejected) if x is not None and gain is not None and n]
    return None if len(start) < 2 else 1.0 if start[0] > start[1] else 0.5 if start[0] == start[1] else 0.0


def drifted(record: Record) -> Finding | None:
    """Mean |change| of log-probability per token since the start, the larger one of chosen and rejected.

    Where the objective contains the likelihood of chosen, a rise of either is what it is for.
    """
    moves, rise_wanted = [], imitates(record)
    for side in ("chosen", "rejected"):
        change, tokens = record.end.get(f"{side}_logp_change"), record.end.get(f"{side}_tokens")
        if change is not None and tokens and not (rise_wanted and change > 0):
            sizes = mean(abs(c) for row in record.rows if (c := getattr(row, f"{side}_logp_change")) is not None)
            moves.append(((abs(change) if sizes is None else sizes) / tokens, side, change))
    if not moves or not max(moves)[0] >= DRIFTED:
        return None
    by_token, side, change = max(moves)
    return Finding(
        code="anchor.drift",
        severity="serious" if by_token >= FAR else "warn",
        title="The model moved far from its start",
        evidence=f"Held-out {side} responses changed by {number(change, 1, sign=True)} nats on average and by "
        f"{number(by_token, 2)} nats a token in size: each token is {number(math.exp(by_token), 1)} times more or less "
        "probable.",
        meaning="So far from the start the preferences no longer describe what the model writes, and other "
        "abilities are likely to be damaged: it may repeat itself or not end.",
        remedy="Lower optim.lr"
        + ("" if rise_wanted else f"; {ADD[0].lower()}{ADD[1:]}")
        + f"; train for fewer steps{last_resort(record)}.",
    )


def stuck(record: Record) -> Finding | None:
    """Neither the loss nor any log-probability moved."""
    early, late = record.early("loss"), record.recent("loss")
    if len(record.steps) < FEW_STEPS or early is None or late is None:
        return None
    margin, movement = _margin_gain(record), _movement(record)
    if abs(late - early) > UNMOVED_LOSS * abs(early) or (movement is not None and movement > UNMOVED):
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
        meaning="The model is practically the one that training began from.",
        remedy="Raise optim.lr (large models usually take 5e-7 to 5e-6, adapters ten times that, small models 10 to "
        "100 times), "
        f"{anchor_hint(record, 'lower')}or train longer.",
    )


def _margin_gain(record: Record) -> float | None:
    """How far the margin moved: on held-out rows, or else between the first and the last steps."""
    held_out, early, late = record.gain("margin"), record.early("margin"), record.recent("margin")
    if held_out is not None:
        return held_out
    return None if early is None or late is None else late - early


def _movement(record: Record) -> float | None:
    """Mean |change of log-probability| of a held-out response, in nats; the margin's where no rows are on record."""
    sizes = [abs(change) for row in record.rows for change in (row.chosen_logp_change, row.rejected_logp_change)
             if change is not None]  # fmt: skip
    margin = _margin_gain(record)
    return mean(sizes) if sizes else None if margin is None else abs(margin)


def no_better_than_chance(record: Record) -> Finding | None:
    """The model moved, but its held-out accuracy may be that of a coin."""
    accuracy, movement = record.accuracy(), _movement(record)
    if accuracy is None or not accuracy.certain or movement is None or movement <= UNMOVED or is_sft(record):
        return None
    half = accuracy.half_width()
    if accuracy.value > COIN + half:
        return None
    below = accuracy.value < COIN - half
    return Finding(
        code="anchor.chance",
        title="Held-out accuracy is below chance" if below else "Held-out accuracy cannot be told from chance",
        evidence=f"It is {share(accuracy.value)} ± {number(100 * half, 1)} points on {number(accuracy.rows)} held-out "
        f"rows, although {'margins' if says_scores(record) else 'responses'} changed by {number(movement, 2)} nats.",
        meaning="The training rows teach the opposite of what the held-out rows prefer: they come from other raters or "
        "writers, or one of the files has its two sides swapped."
        if below
        else "What was learned on the training rows does not show on others: the labels may be noise or of opposed "
        "tastes, or too few rows are held out to show it.",
        remedy="Read some pairs and judge them yourself; check that chosen and rejected are not swapped. Hold out more "
        "rows; train longer or with a higher rate.",
    )


def few_steps(record: Record) -> Finding | None:
    """A run so short that it is a try-out."""
    steps = len(record.steps)
    if not 0 < steps < FEW_STEPS:
        return None
    return Finding(
        code="anchor.few_steps",
        severity="info",
        title="The run is a try-out",
        evidence=f"It has {number(steps)} step{'s' if steps > 1 else ''}.",
        meaning="In so few steps little is learned, and checks that compare the first steps with the last say nothing.",
        remedy="Train for more epochs (optim.epochs), or take smaller steps (batch.rows), before you judge the result.",
    )

"""Distribution shift: do the rows say anything about what this model writes, and are they all there?"""

from __future__ import annotations

import math

from preftune.diagnosis import asked
from preftune.diagnosis.finding import NOISE, Finding, number, share
from preftune.record.reader import Record

# What a language model samples has about -0.3 to -1.5 nats a token under itself, good human text about -2 to -2.5.
# Below -3 (perplexity 20) it would practically never write the response.
UNLIKELY = -3.0
SKIPPED, MANY_SKIPPED = 0.05, 0.2  # 5 % is also where a run refuses unusable rows by default
CUT = 0.1  # responses that lost their end teach the model not to stop
USUAL_TOKENS = 1024  # the longest row where data.max_tokens is not set and the model has that many positions
TOO_LONG = ("too_long", "prompt.too_long")
FEW_ROWS = 100  # below, an accuracy is uncertain by 10 points (two standard errors of a share of 100 rows)


def responses_unlikely(record: Record) -> Finding | None:
    """Log-probability per token of the responses under the model that training began from."""
    chosen, rejected = record.start.get("chosen_mean_logp"), record.start.get("rejected_mean_logp")
    if chosen is None or not max(chosen, chosen if rejected is None else rejected) < UNLIKELY:
        return None
    if asked.imitates(record):
        return None  # to learn such responses is what imitation is for
    both = "" if rejected is None else f" and {number(rejected, 2)} for rejected"
    return Finding(
        code="shift.unlikely",
        severity="warn",
        title="The model would not have written these responses",
        evidence=f"Before training the held-out responses had {number(chosen, 2)} nats a token for chosen{both}: a "
        f"perplexity of {number(math.exp(-chosen), 0)}.",
        meaning="The preferences are about responses far from the model's own. What is learned about them need not "
        "carry over to what the model writes itself.",
        remedy="First imitate the chosen responses (objective demos, or SFT on them), or collect preferences on "
        "responses sampled from this model. Check also that the chat template is the one the model was trained with.",
    )


def rows_skipped(record: Record) -> Finding | None:
    """Training rows that were left out, with the commonest reason."""
    train = record.data.train
    if train is None or not train.read:
        return None
    skipped = sum(train.skipped.values())
    if skipped < SKIPPED * train.read:
        return None
    reason, most = max(train.skipped.items(), key=lambda item: item[1])
    return Finding(
        code="shift.skipped",
        severity="serious" if skipped >= MANY_SKIPPED * train.read else "warn",
        title="Many rows were left out",
        evidence=f"{number(skipped)} of {number(train.read)} training rows ({share(skipped / train.read)}) were "
        f"skipped; the commonest reason is {reason} ({number(most)}).",
        meaning="What is left may differ from what was collected: too long rows, for one, are not skipped at random.",
        remedy="Look at the reasons in the data section, and mend the file where rows are damaged."
        + (f" Where rows are too long, {_longer(record)}." if any(r in train.skipped for r in TOO_LONG) else ""),
    )


def _longer(record: Record) -> str:
    """How longer rows can be kept. Where nothing was set and less than usual was allowed, the model set the limit."""
    used = record.data.max_tokens
    if record.setting("data.max_tokens") is None and used is not None and used < USUAL_TOKENS:
        return f"shorten them or take another model, as {number(used)} tokens are all the positions that this one has"
    return "raise data.max_tokens as far as the model has positions"


def rows_cut(record: Record) -> Finding | None:
    """Training rows whose responses lost their end."""
    train = record.data.train
    if train is None or not train.kept or train.cut < CUT * train.kept:
        return None
    return Finding(
        code="shift.cut",
        severity="warn",
        title="Many responses lost their end",
        evidence=f"{number(train.cut)} of {number(train.kept)} kept rows ({share(train.cut / train.kept)}) were cut "
        "at the longest length allowed.",
        meaning="A cut response has no end token, and its verdict may have rested on the part that is gone.",
        remedy=f'Leave such rows out with data.too_long = "skip". To lose no end, {_longer(record)}.',
    )


def nothing_held_out(record: Record) -> Finding | None:
    """No held-out rows, or too few to tell anything."""
    rows = (record.evaluations[-1].get("rows") if record.evaluations else 0) or 0
    judged = record.judged
    if (judged or rows) >= FEW_ROWS:
        return None
    if judged:
        doubt = f"±{number(100 * NOISE * math.sqrt(0.25 / judged), 0)} points"
        title, meaning = "Few rows are held out", "Smaller differences than that between runs are noise."
        evidence = f"{number(judged)} held-out rows: an accuracy near 50 % is uncertain by {doubt}."
        if judged < rows:
            evidence = f"{number(judged)} of {number(rows)} held-out rows have an accuracy: near 50 %, it is uncertain"
            evidence += f" by {doubt}."
    elif rows:
        title, evidence = "Few rows are held out", f"The held-out loss is a mean over {number(rows)} rows."
        meaning = "A few unusual rows among so few decide it, so small differences between runs are noise."
    else:
        title, evidence = "Nothing is held out", "The record has no evaluation on held-out rows."
        meaning = "Accuracy and margin on the rows that are trained on rise in any case and prove nothing."
    return Finding(
        code="shift.held_out",
        severity="info" if rows else "warn",
        title=title,
        evidence=evidence,
        meaning=meaning,
        remedy="Give data.evaluate, or hold rows out with data.holdout = 0.1.",
    )

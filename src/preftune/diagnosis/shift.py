"""Distribution shift: do the rows say anything about what this model writes, and are all of them used?"""

from __future__ import annotations

import math

from preftune.diagnosis.finding import NOISE, Finding, number, share
from preftune.diagnosis.objective_facts import imitates
from preftune.record.reader import Record

# What a language model samples has about -0.3 to -1.5 nats a token under itself, good human text about -2 to -2.5.
# Below -3 (perplexity 20) it would practically never write the response.
UNLIKELY = -3.0
SKIPPED, MANY_SKIPPED = 0.05, 0.2  # a run refuses more than 5 % unusable rows by default
CUT = 0.1  # a response without its end teaches the model not to stop
USUAL_TOKENS = 1024  # the longest row where data.max_tokens is not set and the model has that many positions
TOO_LONG = {"too_long", "prompt.too_long"}
FEW_ROWS = 100  # below, an accuracy is uncertain by 10 points (two standard errors of a share of 100 rows)


def responses_unlikely(record: Record) -> Finding | None:
    """Log-probability per token of the responses under the model that training began from."""
    chosen, rejected = record.start.get("chosen_mean_logp"), record.start.get("rejected_mean_logp")
    if chosen is None or not max(chosen, chosen if rejected is None else rejected) < UNLIKELY:
        return None
    if imitates(record):
        return None  # to learn such responses is what SFT is for
    both = "" if rejected is None else f" and {number(rejected, 2)} for rejected"
    return Finding(
        code="shift.unlikely",
        title="The model would not have written these responses",
        evidence=f"Before training the held-out responses had {number(chosen, 2)} nats a token for chosen{both}, which "
        f"is a perplexity of {number(math.exp(-chosen), 0)}.",
        meaning="The preferences are about responses far from the model's own. What is learned about them need not "
        "carry over to what the model writes itself.",
        remedy="First train on the chosen responses (SFT: objective nll), or collect preferences on responses sampled "
        "from this model. Check also that the chat template is the one that the model was trained with.",
    )


def rows_skipped(record: Record) -> Finding | None:
    """Training rows that were left out, with the most frequent reason."""
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
        f"skipped. The most frequent reason is {reason} ({number(most)}).",
        meaning="The rows that are left may differ from those that were collected: rows that are too long, for "
        "example, are not skipped at random.",
        remedy="Look at the reasons in the data section, and correct the file where rows are damaged."
        + (f" Where rows are too long, {_longer_rows(record)}." if TOO_LONG & train.skipped.keys() else ""),
    )


def _longer_rows(record: Record) -> str:
    """How longer rows can be used. Where nothing was set and few tokens were allowed, the model set the limit."""
    limit = record.data.max_tokens
    if record.setting("data.max_tokens") is None and limit is not None and limit < USUAL_TOKENS:
        return f"shorten them or use another model, because this one has only {number(limit)} positions"
    return "raise data.max_tokens as far as the model has positions"


def rows_cut(record: Record) -> Finding | None:
    """Training rows whose responses lost their end."""
    train = record.data.train
    if train is None or not train.kept or train.cut < CUT * train.kept:
        return None
    return Finding(
        code="shift.cut",
        title="Many responses lost their end",
        evidence=f"{number(train.cut)} of {number(train.kept)} rows ({share(train.cut / train.kept)}) were cut at the "
        "longest length allowed.",
        meaning="A cut response has no end token, and people may have judged it by the part that is gone.",
        remedy=f'Leave such rows out with data.too_long = "skip". To use them whole, {_longer_rows(record)}.',
    )


def nothing_held_out(record: Record) -> Finding | None:
    """No held-out rows, or too few for a conclusion."""
    rows = (record.evaluations[-1].get("rows") if record.evaluations else 0) or 0
    judged = record.judged
    if (judged or rows) >= FEW_ROWS:
        return None
    title = "Few rows are held out" if rows else "Nothing is held out"
    if judged:
        error = f"{number(100 * NOISE * math.sqrt(0.25 / judged), 0)} points"
        of_all = f" of {number(rows)}" if judged < rows else ""
        evidence = f"{number(judged)}{of_all} held-out rows have an accuracy; near 50 % it is uncertain by ±{error}."
        meaning = "Smaller differences than that between runs are noise."
    elif rows:
        evidence = f"The held-out loss is a mean over {number(rows)} rows."
        meaning = "A few unusual rows among so few decide it, so small differences between runs are noise."
    else:
        evidence = "The record has no evaluation on held-out rows."
        meaning = "Accuracy and margin rise on the training rows in any case, and that proves nothing."
    return Finding(
        code="shift.held_out",
        severity="info" if rows else "warn",
        title=title,
        evidence=evidence,
        meaning=meaning,
        remedy="Name held-out rows in data.evaluate, or hold rows out with data.holdout = 0.1.",
    )

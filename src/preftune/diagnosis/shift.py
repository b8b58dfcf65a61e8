"""Distribution shift: do the rows say anything about what this model writes, and are all of them used?"""

from __future__ import annotations

import math

from preftune.diagnosis.finding import Finding, number, share
from preftune.diagnosis.objective_facts import imitates, is_sft
from preftune.record.reader import HeldOutRow, Record
from preftune.record.statistics import FEWEST_PROMPTS, mean
from preftune.rows.account import TOO_LONG
from preftune.rows.shares import SHARE

# What a language model samples has about -0.3 to -1.5 nats a token under itself, good human text about -2 to -2.5.
# Below -3 (perplexity 20) it would practically never write the response.
UNLIKELY = -3.0
SKIPPED, MANY_SKIPPED = 0.05, 0.2  # a run refuses more than 5 % unusable rows by default
CUT = 0.1  # a response without its end teaches the model not to stop
USUAL_TOKENS = 1024  # the longest row where data.max_tokens is not set and the model has that many positions
SEEN = 0.1  # of the held-out rows, those whose prompt is trained on too
UNUSUAL_END = -5.0  # nats; a model ends its own responses with a probability far above e^-5 = 0.7 %
UNLEARNED_END = -0.1
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
        remedy='First train on the chosen responses (objective = "nll"), or collect preferences on responses sampled '
        "from this model. Check also that the chat template is the one that the model was trained with.",
    )


def rows_skipped(record: Record) -> Finding | None:
    """Training rows that were left out, with the most frequent reason."""
    train = record.data.train
    if train is None or not train.read:
        return None
    sampled = SHARE in train.skipped  # then other reasons count rows too that no share would have taken
    reasons = {reason: count for reason, count in train.skipped.items() if reason in TOO_LONG or not sampled}
    skipped = sum(reasons.values())
    read = train.kept + skipped if sampled else train.read
    if not reasons or skipped < SKIPPED * read:
        return None
    reason, most = max(reasons.items(), key=lambda item: item[1])
    return Finding(
        code="shift.skipped",
        severity="serious" if skipped >= MANY_SKIPPED * read else "warn",
        title="Many rows were left out",
        evidence=f"{number(skipped)} of {number(read)} training rows ({share(skipped / read)}) were "
        f"skipped. The most frequent reason is {reason} ({number(most)}).",
        meaning="The rows that are left may differ from those that were collected: rows that are too long, for "
        "example, are not skipped at random.",
        remedy="Look at the reasons in the data section, and correct the file where rows are damaged."
        + (f" Where rows are too long, {_longer_rows(record)}." if reasons.keys() & {*TOO_LONG} else ""),
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


def end_wrong(record: Record) -> Finding | None:
    """The end token's log-probability before training."""
    logp = mean(_ends(row, start=True) for row in record.rows)
    if logp is None or logp >= UNUSUAL_END or imitates(record):
        return None
    return Finding(
        code="end.wrong",
        title="The model does not know this end token",
        evidence=f"Before training the end token behind held-out responses had {number(logp, 1)} nats on average.",
        meaning="Most likely the tokenizer or its chat template names another end token than the one that the model "
        "was trained to write. The tuned model will then not stop where it should.",
        remedy="Compare the end token of the tokenizer with eos_token_id in generation_config.json, and the chat "
        "template with the one that the model was trained with; or first train on the chosen responses "
        '(objective = "nll").',
    )


def end_unlearned(record: Record) -> Finding | None:
    """Change of the end token's own log-probability."""
    change = record.average(lambda row: _ends(row, start=False))
    if change is None or change.value > UNLEARNED_END or is_sft(record):
        return None
    by_side = [mean(getattr(row, f"{side}_end_change") for row in record.rows) for side in ("chosen", "rejected")]
    return Finding(
        code="end.unlearned",
        title="The model unlearns to stop",
        evidence=f"The end token changed by {number(change.value, 2, sign=True)} ± {number(change.half_width(), 2)} "
        f"nats on average ({number(by_side[0], 2, sign=True)} behind chosen, {number(by_side[1], 2, sign=True)} behind "
        "rejected).",
        meaning="The tuned model will go on where it used to end. This happens where rejected responses were cut and "
        "an end token was put behind them, or where longer responses are preferred as such.",
        remedy="Drop or repair responses that were cut. Where none was, add the likelihood of chosen (a sum of dpo and "
        "nll), and lower optim.lr.",
        p=change.p_below(0.0),
    )


def _ends(row: HeldOutRow, *, start: bool) -> float | None:
    """Mean over a row's responses of the end token's log-probability before training, or of its change."""
    sides = ((row.chosen_end_logp, row.chosen_end_change), (row.rejected_end_logp, row.rejected_end_change))
    return mean(logp - gain if start else gain for logp, gain in sides if logp is not None and gain is not None)


def trained_on_too(record: Record) -> Finding | None:
    """Share of held-out rows whose prompt is trained on too."""
    seen = record.data.held_out_trained
    if seen is None or seen < SEEN:
        return None
    return Finding(
        code="shift.seen",
        title="Held-out prompts are trained on too",
        evidence=f"{share(seen)} of the held-out rows have a prompt that training rows have as well.",
        meaning="Held-out numbers then say how well training rows are remembered, and not how well the model does on "
        "new prompts.",
        remedy="Leave data.evaluate out and use data.holdout = 0.1, which never parts the rows of a prompt.",
    )


def nothing_held_out(record: Record) -> Finding | None:
    """No held-out rows, or too few for a conclusion."""
    if record.end.get("score") is not None:
        return None  # prompts are held out, and what is drawn to them has an error of its own
    rows = (record.evaluations[-1].get("rows") if record.evaluations else 0) or 0
    judged = record.judged
    prompts = len({row.prompt for row in record.rows}) if record.rows and record.knows_prompts else FEWEST_PROMPTS
    if (judged or rows) >= FEW_ROWS and prompts >= FEWEST_PROMPTS:
        return None
    title = "Few rows are held out" if rows else "Nothing is held out"
    if prompts < FEWEST_PROMPTS:
        title = "Few prompts are held out"
        evidence = f"The {number(rows)} held-out rows have {number(prompts)} prompt{'s' if prompts > 1 else ''}."
        meaning = "Rows of one prompt are not independent, so how far an accuracy would be off on other prompts " \
            "cannot be told, and checks that need an error are silent."  # fmt: skip
    elif judged:
        accuracy = record.accuracy()
        known = accuracy is not None and accuracy.certain and bool(record.rows)
        width = accuracy.half_width() if accuracy is not None and known else 2 * math.sqrt(0.25 / judged)
        of_all = f" of {number(rows)}" if judged < rows else ""
        error = f"±{number(100 * width, 1)} points"
        evidence = f"{number(judged)}{of_all} held-out rows have an accuracy, which is uncertain by {error}."
        meaning = "Smaller differences than that between runs are noise."
    elif rows:
        evidence = f"The held-out loss is a mean over {number(rows)} rows."
        meaning = "A few unusual rows among so few decide it, so small differences between runs are noise."
    else:
        evidence = "The record has no evaluation on held-out rows."
        better = "The loss falls" if is_sft(record) else "Accuracy and margin rise"
        better = "Scores rise" if record.phases else better
        meaning = f"{better} on the training rows in any case, and that proves nothing."
    return Finding(
        code="shift.held_out",
        severity="info" if rows else "warn",
        title=title,
        evidence=evidence,
        meaning=meaning,
        remedy="Raise data.holdout, or name rows of more prompts in data.evaluate."
        if record.setting("data.holdout")
        else "Name held-out rows in data.evaluate, or hold rows out with data.holdout = 0.1.",
    )

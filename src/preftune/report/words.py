"""What a page says in words about one run: its headline, and the sentences below it."""

from __future__ import annotations

import math
import unicodedata
from pathlib import PurePath

from preftune.diagnosis.finding import number, share
from preftune.diagnosis.objective_facts import parts
from preftune.record.best import figure_of, outcome
from preftune.record.parse import Numbers
from preftune.record.reader import Record
from preftune.record.statistics import mean

EXPLAINS = 0.02  # where kinds of row are mixed only some have a margin, and the changes of all do not explain it
SIDES = {
    "ratings": ("good responses", "bad responses"),
    "demos": ("responses", "rejected"),
    "tasks": ("better draws", "worse draws"),
}  # else chosen, rejected
NORMAL = 1.96  # standard errors in a 95 % interval of a mean
UNMOVED = 0.05  # nats of a margin, which one decimal place shows as 0
FIRST = 5  # steps whose mean loss is where training began
JOINERS = "\u200c\u200d"  # characters without width that Persian and emoji need


def objective(record: Record) -> str:
    """The objective as people write it; the parts of a sum with plus signs."""
    return " + ".join(part.kind.written if part.kind else part.name for part in parts(record)) or "tuning"


def model(record: Record) -> str:
    """Last part of the policy's path; of a run's own `model` folder, the run's name."""
    setting = record.setting("model.path")
    if not isinstance(setting, str) or not setting:
        return "the model"
    path = PurePath(setting)
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def row_kind(record: Record) -> str:
    """What the rows of this record are, in the plural; `rows` where there are several kinds."""
    kinds = record.data.train.kinds if record.data.train else {}
    if kinds:
        return f"{next(iter(kinds))}s" if len(kinds) == 1 else "rows"
    lines = (record.end or record.start, *record.steps[:1])
    return "pairs" if any(line.get("rejected_tokens") is not None for line in lines) else "rows"


def sides(kind: str) -> tuple[str, str]:
    """What chosen and rejected are called in rows of this kind."""
    return SIDES.get(kind, ("chosen", "rejected"))


def headline(record: Record) -> str:
    """The result in one sentence."""
    steps = len(record.steps)
    if not steps:
        return f"{model(record)} has not been tuned yet: the record holds no step."
    seen = total(record, "examples")
    rows = f" and {number(seen)} rows seen" if seen else ""
    after = f"After {number(steps)} step{'s' if steps > 1 else ''} of {objective(record)}{rows}, {model(record)}"
    figure, score, kl = figure_of(record.end), record.end.get("score"), record.end.get("kl")
    if figure == "score" and score is not None:
        since = _since(record.start.get("score"), score)
        return f"{after} has a held-out score of {number(score)}{since}{_at_kl(kl)}."
    accuracy, judged, kind = record.end.get("accuracy"), record.judged, row_kind(record)
    if figure == "accuracy" and judged and kind == "ratings":
        return (
            f"{after} puts good above bad in {share(accuracy)} of the comparisons of {number(judged)} held-out ratings."
        )
    if figure == "accuracy" and judged:
        undecided = (record.end.get("rows") or 0) - judged
        more = f"; {number(undecided)} more have no right order" if undecided > 0 else ""
        return f"{after} ranks {share(accuracy)} of {number(judged)} held-out {kind} right{more}."
    drawn = scored_phases(record)
    if drawn:
        first, last = drawn[0]["score"], drawn[-1]["score"] or 0.0
        since = f"{_since(first, last)} in the first phase{_at_kl(drawn[-1].get('kl'))}"
        of = ", to the prompts that it learns from," if record.setting("rollout.redraws") else ""
        return f"{after} draws responses{of} that score {number(last)}{since}; no prompt is held out."
    key = "loss" if record.end.get("perplexity") is None else "perplexity"
    before, now, location = record.start.get(key), record.end.get(key), "held-out"
    if before is None or now is None:
        before, now, location, key = first_loss(record), record.recent("loss"), "training", "loss"
    if before is None or now is None:
        return f"{after} has no loss on record."
    return f"{after} has a {location} {key} of {number(now)}{_since(before, now)}."


def _since(before: float | None, now: float) -> str:
    """`, up from 0.1`, which way it went; empty where it began nowhere."""
    if before is None:
        return ""
    same = number(before) == number(now)
    return f", {'as at the start,' if same else 'down from' if now < before else 'up from'} {number(before)}"


def _at_kl(kl: float | None) -> str:
    return f", at a KL of {number(kl, 2)} nats from the reference" if kl is not None else ""


def first_loss(record: Record) -> float | None:
    return mean(step.get("loss") for step in record.steps[:FIRST])


def lead(record: Record) -> list[str]:
    """Two or three sentences below the headline."""
    train = record.data.train
    seen, rows = total(record, "examples"), train.kept if train else 0
    learned = f"It learned from {number(min(seen or rows, rows))} {row_kind(record)}" if rows else "It learned"
    if seen and seen < rows:
        learned += f" of {number(rows)}"
    elif rows and seen > rows:
        learned += f", each {number(seen / rows)} times,"
    if drawn := math.fsum(phase.get("responses") or 0.0 for phase in record.phases):
        phases = len(record.phases)
        learned = f"It learned from {number(drawn)} drawn responses in {number(phases)} phase{'s' * (phases > 1)},"
    sentences = [f"{learned} in {duration(spent(record))}."]
    sentences += [f"{event.text[:1].upper()}{event.text[1:]}." for event in outcome(record).values()]
    sentences += _certainty(record)
    accuracy, margin = record.start.get("accuracy"), record.gain("margin")
    if accuracy is not None and margin is not None:
        tied = ": every margin was still zero" if abs(record.start.get("margin") or 0.0) < 1e-3 else ""
        sentences.append(f"Before training the share was {share(accuracy)}{tied}.")
        chosen, rejected = record.end.get("chosen_logp_change"), record.end.get("rejected_logp_change")
        why, (better, worse) = "", sides(row_kind(record))
        gained = math.inf if chosen is None or rejected is None else chosen - rejected
        if abs(gained - margin) <= EXPLAINS * max(1, abs(margin)):
            why = f": the log-probability of {better} changed by {number(chosen, 1, sign=True)}, that of {worse} by " \
                f"{number(rejected, 1, sign=True)}"  # fmt: skip
        course = "grew" if margin >= 0 else "shrank"
        moved = f"The margin {course} by {number(abs(margin), 1)} nats{why}."
        sentences.append(moved if abs(margin) >= UNMOVED else "The margin did not move.")
    return sentences


def _certainty(record: Record) -> list[str]:
    """How far the held-out score or accuracy may be off on other prompts."""
    if error := record.end.get("score_error"):
        return [f"Its score is uncertain by ±{number(NORMAL * error)} on other prompts."]
    accuracy = record.accuracy()
    if accuracy is None or not record.rows:
        return []
    of_prompts = f"{number(accuracy.rows)} held-out rows of {number(accuracy.prompts)} prompt" \
        f"{'s' if accuracy.prompts > 1 else ''}"  # fmt: skip
    if not record.knows_prompts:
        return [f"Its accuracy is uncertain by ±{number(100 * accuracy.half_width(), 1)} points if no two of the "
                "held-out rows share a prompt, which this record of an earlier version does not say."]  # fmt: skip
    if not accuracy.certain:
        return [f"Its accuracy is of {of_prompts}, which are too few: how far it would be off on other prompts "
                "cannot be told."]  # fmt: skip
    return [f"Its accuracy is uncertain by ±{number(100 * accuracy.half_width(), 1)} points, from {of_prompts}."]


def scored_phases(record: Record) -> list[Numbers]:
    return [phase for phase in record.phases if (score := phase.get("score")) is not None and math.isfinite(score)]


def status(record: Record) -> str:
    """`finished`, `stopped at step 40` or `unfinished at step 40`."""
    ends = [event.kind for event in record.events if event.kind in ("finished", "stopped", "resumed")]
    if ends[-1:] == ["finished"]:
        return "finished"
    reached = number(record.steps[-1]["step"]) if record.steps else "0"
    return f"{'stopped' if ends[-1:] == ['stopped'] else 'unfinished'} at step {reached}"


def sharing(record: Record) -> str:
    """What computing every distinct token once saves in these rows; empty where the record does not count them."""
    naive, distinct = record.data.tokens_naive, record.data.tokens_distinct
    if not naive or distinct is None:
        return ""
    whole = f"{number(naive)} tokens when each prompt is written out with each response"
    return f"The rows have {whole}; {number(distinct)} of them are distinct."


def spent(record: Record) -> float:
    """Seconds of all updates and, where it draws, of its phases."""
    phases = [phase.get(key) or 0.0 for phase in record.phases for key in ("seconds_draw", "seconds_score")]
    return total(record, "seconds") + math.fsum(phases)


def total(record: Record, key: str) -> float:
    """Sum of a number over all steps, finite values only."""
    values = [step.get(key) for step in record.steps]
    return math.fsum(value for value in values if value is not None and math.isfinite(value))


def visible(text: str) -> str:
    """Control and direction-changing characters written as codes, such as U+202E, which would hide or reorder text."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or c in JOINERS
                   else f"U+{ord(c):04X}" for c in text)  # fmt: skip


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{number(seconds, 1 if seconds < 10 else 0)} s"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s"

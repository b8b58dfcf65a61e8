"""What a page says in words about one run: its headline, its key numbers, its table of evaluations."""

from __future__ import annotations

import math
import unicodedata
from pathlib import PurePath

from msgspec import Struct

from preftune.diagnosis import asked
from preftune.diagnosis.finding import number, share
from preftune.record.reader import Record
from preftune.record.schema import EVALUATION

SPELLED = {
    "simpo": "SimPO", "ln_dpo": "length-normalized DPO", "robust": "robust DPO", "dpo_positive": "DPO-Positive",
    "cal_dpo": "Cal-DPO", "beta_dpo": "β-DPO", "dr_dpo": "Dr. DPO", "f_dpo": "f-DPO", "chi_po": "χPO", "hypo": "HyPO",
    "alpha_po": "AlphaPO", "simper": "SimPER", "slic": "SLiC", "hinge": "hinge loss", "apo_zero": "APO-zero",
    "apo_down": "APO-down", "info_nca": "InfoNCA", "plackett_luce": "Plackett-Luce", "nll": "imitation",
}  # fmt: skip
ADDS_UP = 0.02  # where kinds are mixed only some rows have a margin, and the changes of all do not explain it
SIDES = {"ratings": ("good responses", "bad responses"), "demos": ("responses", "rejected")}  # else chosen, rejected
JOINERS = "\u200c\u200d"  # characters without width that Persian and emoji need


class Tile(Struct, frozen=True):
    """A key number. note: where it started, or what it means."""

    label: str
    value: str
    note: str


class Line(Struct, frozen=True):
    """A quantity of the evaluation table with its value before and after."""

    name: str
    meaning: str
    unit: str
    start: str
    end: str
    change: str


def objective(record: Record) -> str:
    """The objective as people write it; the parts of a sum with plus signs."""
    names = [name for part in asked.parts(record) if isinstance(name := part.get("name"), str)]
    return " + ".join(SPELLED.get(name, name.replace("_", "-").upper()) for name in names) or "tuning"


def model(record: Record) -> str:
    """Last part of the policy's path; of a run's own `model` folder, the run's name."""
    path = record.setting("model.path")
    if not isinstance(path, str) or not path:
        return "the model"
    place = PurePath(path)
    return place.parent.name if place.name == "model" and place.parent.name else place.name


def rows(record: Record) -> str:
    """What the rows of this record are, in the plural."""
    if record.data.train and len(kinds := record.data.train.kinds) == 1:
        return f"{next(iter(kinds))}s"
    if record.data.train and record.data.train.kinds:
        return "rows"
    paired = (record.end or record.start).get("rejected_tokens") is not None
    return "pairs" if paired or any(step.get("rejected_tokens") is not None for step in record.steps[:1]) else "rows"


def sides(kind: str) -> tuple[str, str]:
    """What chosen and rejected are called of rows of one kind."""
    return SIDES.get(kind, ("chosen", "rejected"))


def headline(record: Record) -> str:
    """The result in one sentence."""
    accuracy, held, whole = record.end.get("accuracy"), record.judged, record.end.get("rows") or 0
    steps = len(record.steps)
    if not steps:
        return f"{model(record)} has not been tuned yet: the record holds no step."
    after = f"After {number(steps)} step{'s' if steps > 1 else ''} of {objective(record)}, {model(record)}"
    if accuracy is not None and held and rows(record) == "ratings":
        return (
            f"{after} puts good above bad in {share(accuracy)} of the comparisons of {number(held)} held-out ratings."
        )
    if accuracy is not None and held:
        others = f"; {number(whole - held)} more have no right order" if whole > held else ""
        return f"{after} ranks {share(accuracy)} of {number(held)} held-out {rows(record)} right{others}."
    before, now, location = record.start.get("loss"), record.end.get("loss"), "held-out"
    if before is None or now is None:
        before, now, location = record.early("loss"), record.recent("loss"), "training"
    if before is None or now is None:
        return f"{after} has no loss on record."
    return f"{after} has a {location} loss of {number(now)}, {'down' if now < before else 'up'} from {number(before)}."


def lede(record: Record) -> list[str]:
    """Two or three sentences below the headline."""
    train, said = record.data.train, []
    learned = f"It learned from {number(train.kept)} {rows(record)}" if train else "It learned"
    said.append(f"{learned} in {duration(total(record, 'seconds'))}.")
    first, margin = record.start.get("accuracy"), record.gain("margin")
    if first is not None and margin is not None:
        tied = abs(record.start.get("margin") or 0.0) < 1e-3
        said.append(f"Before training the share was {share(first)}{': every margin was still zero' if tied else ''}.")
        chosen, rejected = record.end.get("chosen_logp_change"), record.end.get("rejected_logp_change")
        why, (up, down) = "", sides(rows(record))
        apart = math.inf if chosen is None or rejected is None else chosen - rejected
        if abs(apart - margin) <= ADDS_UP * max(1, abs(margin)):
            why = f": the log-probability of {up} changed by {number(chosen, 1, sign=True)}, that of {down} by " \
                f"{number(rejected, 1, sign=True)}"  # fmt: skip
        said.append(f"The margin {'grew' if margin >= 0 else 'shrank'} by {number(abs(margin), 1)} nats{why}.")
    return said


def status(record: Record) -> str:
    """`finished`, `stopped at step 40` or `unfinished`."""
    last = next((e for e in reversed(record.events) if e.kind in ("finished", "stopped", "resumed")), None)
    if last and last.kind == "finished":
        return "finished"
    reached = number(record.steps[-1]["step"]) if record.steps else "0"
    return f"{'stopped' if last and last.kind == 'stopped' else 'unfinished'} at step {reached}"


def tiles(record: Record) -> list[Tile]:
    """The numbers that a reader wants first."""
    found = []
    if (accuracy := record.end.get("accuracy")) is not None:
        found.append(Tile("Held-out accuracy", share(accuracy), f"from {share(record.start.get('accuracy'))}"))
    if (margin := record.end.get("margin")) is not None:
        note = f"nats, from {number(record.start.get('margin'), 1)}"
        found.append(Tile("Margin", number(margin, 1, sign=True), note))
    for side, name in zip(("chosen", "rejected"), sides(rows(record)), strict=True):
        change, tokens = record.end.get(f"{side}_logp_change"), record.end.get(f"{side}_tokens")
        if change is not None:
            note = f"nats, {number(change / tokens, 2, sign=True)} a token" if tokens else "nats"
            found.append(Tile(f"Log-probability of {name}", number(change, 1, sign=True), note))
    if not found and record.steps:
        found.append(Tile("Loss", number(record.recent("loss")), f"from {number(record.early('loss'))}"))
    if (saved := _saved(record)) is not None:
        found.append(Tile("Tokens saved by sharing", share(saved[1] / sum(saved)), f"{number(saved[0])} computed"))
    return found


def _saved(record: Record) -> tuple[float, float] | None:
    """Tokens computed and tokens saved over the whole run; None where they were not counted."""
    computed, shared = total(record, "tokens_computed"), total(record, "tokens_shared")
    return (computed, shared) if computed else None


def sharing(record: Record) -> list[str]:
    """What computing every distinct token once has saved."""
    said = []
    if (saved := _saved(record)) is not None:
        said.append(f"Training put {number(saved[0])} tokens through the model. Every prompt with every response anew "
                    f"would have been {number(sum(saved))}: sharing saved {share(saved[1] / sum(saved))}.")  # fmt: skip
    naive, distinct = record.data.tokens_naive, record.data.tokens_distinct
    if naive and distinct is not None:
        said.append(f"The rows have {number(naive)} tokens when each prompt is written out with each response, and "
                    f"{number(distinct)} distinct ones.")  # fmt: skip
    return said


def evaluations(record: Record) -> list[Line]:
    """Every evaluated number before and after, with its unit and meaning."""
    lines = []
    for key, meter in EVALUATION.items():
        first, last = record.start.get(key), record.end.get(key)
        if key in ("step", "rows", "responses", "seconds") or (first is None and last is None):
            continue
        percent = meter.unit == "share"
        change = record.gain(key)
        spell = share if percent else number
        difference = f"{number(100 * change, 1, sign=True)} pt" if percent and change is not None else number(
            change, sign=True)  # fmt: skip
        name = key.replace("_", " ").replace("logp", "log-probability").capitalize()
        unit = "" if percent or meter.unit == "as the objective" else meter.unit
        lines.append(Line(name, meter.meaning.partition("; null")[0], unit, spell(first), spell(last), difference))
    return lines


def total(record: Record, key: str) -> float:
    """Sum of a number over all steps, finite values only."""
    values = [step.get(key) for step in record.steps]
    return math.fsum(value for value in values if value is not None and math.isfinite(value))


def visible(text: str) -> str:
    """Control and direction-changing characters spelled out, as U+202E: they would show another text than there is."""
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

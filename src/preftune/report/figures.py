"""The key numbers of one run, its table of evaluations, and what it gets right in each category of its rows."""

from __future__ import annotations

from msgspec import Struct

from preftune.diagnosis.finding import but_rounding, number, share
from preftune.diagnosis.objective_facts import of_demos
from preftune.record.of_rewards import evaluation_metrics
from preftune.record.reader import HeldOutRow, Record, prompts_of
from preftune.record.schema import EVALUATION, described
from preftune.record.statistics import estimate
from preftune.report.words import first_loss, row_kind, scored_phases, sides, total

SPOKEN = {"logp": "log-probability", "kl": "KL", "rms": "RMS"}  # words of a key as people write them


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


def tiles(record: Record) -> list[Tile]:
    """The numbers that a reader wants first."""
    row = []
    if (score := record.end.get("score")) is not None:
        row.append(Tile("Held-out score", number(score), f"from {number(record.start.get('score'))}"))
    if (ceiling := record.end.get("ceiling")) is not None:
        row.append(Tile("Ceiling", number(ceiling), f"at KL {number(record.end.get('kl'), 2)}"))
    if (accuracy := record.end.get("accuracy")) is not None:
        row.append(Tile("Held-out accuracy", share(accuracy), f"from {share(record.start.get('accuracy'))}"))
    if (perplexity := record.end.get("perplexity")) is not None:
        row.append(Tile("Held-out perplexity", number(perplexity), f"from {number(record.start.get('perplexity'))}"))
    if (margin := record.end.get("margin")) is not None:
        note = f"nats, from {number(record.start.get('margin'), 1)}"
        row.append(Tile("Margin", number(margin, 1, sign=True), note))
    for side, name in zip(("chosen", "rejected"), sides(row_kind(record)), strict=True):
        change, tokens = record.end.get(f"{side}_logp_change"), record.end.get(f"{side}_tokens")
        if change is not None:
            note = f"nats, {number(change / tokens, 2, sign=True)} a token" if tokens else "nats"
            row.append(Tile(f"Log-probability of {name}", number(change, 1, sign=True), note))
    drawn = scored_phases(record)
    if not row and drawn:
        row.append(Tile("Score of what was drawn", number(drawn[-1]["score"]), f"from {number(drawn[0]['score'])}"))
        if (kl := drawn[-1].get("kl")) is not None:
            row.append(Tile("KL", number(kl, 2), "nats from the reference"))
    if not row and record.steps:
        row.append(Tile("Loss", number(record.recent("loss")), f"from {number(first_loss(record))}"))
    if (slope := record.end.get("calibration_slope")) is not None:
        error = share(record.end.get("calibration_error"))
        row.append(Tile("Calibration slope", number(slope, 2), f"1 is right; calibration error {error}"))
    computed, shared = total(record, "tokens_computed"), total(record, "tokens_shared")
    if computed:
        saved = share(shared / (computed + shared))
        row.append(Tile("Tokens saved by sharing", saved, f"{number(computed)} computed"))
    return row


def evaluations(record: Record) -> list[Line]:
    """Every evaluated number before and after, with its unit and meaning."""
    lines = []
    for key, meter in evaluation_metrics(record.start, record.end).items():
        first, last, change = record.start.get(key), record.end.get(key), record.gain(key)
        if key in ("step", "rows", "responses", "seconds") or (first is None and last is None):
            continue
        spell, unit = (share, "") if meter.unit == "share" else (number, meter.unit.replace("as the objective", ""))
        first, last, change = (but_rounding(value, unit) for value in (first, last, change))
        difference = number(change, sign=True)
        if spell is share and change is not None:
            difference = f"{number(100 * change, 1, sign=True)} pt"
        name, meaning = described(key, meter, demos=of_demos(record))
        if key in EVALUATION:  # else it has the name of a reward
            name = " ".join(SPOKEN.get(word, word) for word in name.split("_"))
            name = f"{name[0].upper()}{name[1:]}"
        lines.append(Line(name, meaning.partition("; null")[0], unit, spell(first), spell(last), difference))
    return lines


def categories(record: Record) -> list[tuple[str, str, int]]:
    """Of each category that held-out rows name: its name, its accuracy with a standard error, and its rows."""
    rows_of: dict[str, list[HeldOutRow]] = {}
    for row in record.judged_rows:
        if row.category:
            rows_of.setdefault(row.category, []).append(row)
    lines = []
    for name, rows in sorted(rows_of.items()):
        accuracy = estimate([row.accuracy or 0.0 for row in rows], prompts_of(rows), share=True)
        error = f" ± {number(100 * accuracy.error, 1)}" if accuracy is not None and accuracy.certain else ""
        lines.append((name, f"{share(accuracy and accuracy.value)}{error}", len(rows)))
    return lines

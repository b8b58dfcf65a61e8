"""Several runs side by side: in which keys they differ, and which differences are more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from msgspec import Struct

from preftune.diagnosis.finding import number, share, share_error
from preftune.record.reader import HeldOutRow, Record
from preftune.record.statistics import standard_error
from preftune.report.words import duration, objective, total

FEWEST = 10  # shared rows below which nothing is said
CONFIDENCE = 0.95  # over all runs of the page together, so that many runs do not make a difference by chance


class Column(Struct, frozen=True):
    """One run in the table. values: its settings that differ, in the order of the keys; cells: its results."""

    name: str
    colour: int
    values: tuple[str, ...]
    cells: tuple[str, ...]


class Difference(Struct, frozen=True):
    """A run against the first one on the rows that both have held out. beyond: None where nothing can be said."""

    name: str
    text: str
    beyond: bool | None


RESULTS = ("Accuracy", "per token", "Margin", "Chosen", "Rejected", "Length corr.", "Loss", "Steps", "Time")
SINCE_START = ("Since start: accuracy", "margin", *RESULTS[3:])


def names(records: Sequence[Record]) -> list[str]:
    """Folder names, with as many parent folders in front as it takes to tell the runs apart."""
    parts = [record.path.resolve().parts for record in records]
    for depth in range(1, max(map(len, parts)) + 1):
        found = ["/".join(part[-depth:]) for part in parts]
        if len(set(found)) == len(found):
            return found
    return [f"{record.name} ({index})" for index, record in enumerate(records, 1)]


def differing(records: Sequence[Record]) -> list[str]:
    """Dotted keys of run.toml whose values are not the same in all runs; `out` always differs and is left out."""
    flat = settings(records)
    keys = dict.fromkeys(key for run in flat for key in run)
    return [key for key in keys if key != "out" and len({run.get(key) for run in flat}) > 1]


def settings(records: Sequence[Record]) -> list[dict[str, str]]:
    """Every key of each run, dotted, as text.

    Different objectives have different keys, so there one entry tells each: its name, and of its keys those in which
    runs of that name differ. Whether there is a reference follows from the name, and is left out where it does.
    """
    flat = [_flat(record.run) | _used(record) for record in records]
    alike: dict[str, list[dict[str, str]]] = {}
    for run in flat:
        alike.setdefault(run.get("objective.name", ""), []).append(run)
    if len(alike) < 2:
        return flat
    follows = all(len({run.get("reference.kind") for run in runs}) == 1 for runs in alike.values())
    found = []
    for record, run in zip(records, flat, strict=True):
        mine = alike[run.get("objective.name", "")]
        own = [key for key in run if key.startswith("objective.") and len({one.get(key) for one in mine}) > 1]
        name = objective(record) if "objective.parts" in run else run.get("objective.name", "")
        told = " ".join([name, *(f"{key.partition('.')[2]}={run[key]}" for key in own if key != "objective.parts")])
        rest = {
            k: v for k, v in run.items() if not k.startswith("objective.") and (k != "reference.kind" or not follows)
        }
        found.append({"objective": told, **rest})
    return found


def _used(record: Record) -> dict[str, str]:
    """What was used for keys that the configuration may leave open."""
    return {} if record.data.max_tokens is None else {"data.max_tokens": str(record.data.max_tokens)}


def _flat(value: object, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}".strip(".")).items()}
    text = f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
    return {prefix: text}


def of_one_kind(records: Sequence[Record]) -> bool:
    """Whether accuracy and margin mean the same in all runs: objectives and references decide what they are of."""
    keys = ("reference.kind", "reference.path", "objective.per_token", "aggregate")
    return len({(objective(record), *(str(record.setting(key)) for key in keys)) for record in records}) == 1


def columns(records: Sequence[Record]) -> list[Column]:
    """The table's content, one entry a run."""
    keys, called, told = differing(records), names(records), settings(records)
    alike, found = of_one_kind(records), []
    for index, record in enumerate(records):
        flat, end = told[index], record.end
        accuracy, held = end.get("accuracy" if alike else "accuracy_of_change"), record.judged
        error = f" ± {number(100 * share_error(accuracy, held), 1)}" if accuracy is not None and held else ""
        chosen, rejected = end.get("chosen_logp_change"), end.get("rejected_logp_change")
        since = None if chosen is None or rejected is None else chosen - rejected
        cells = (
            f"{share(accuracy)}{error}",
            *((share(end.get("accuracy_per_token")), number(end.get("margin"), 1)) if alike else (number(since, 1),)),
            number(chosen, 1, sign=True), number(rejected, 1, sign=True),
            number(end.get("reward_length_correlation"), 2),
            number(end.get("loss", record.recent("loss")), 3), number(len(record.steps)),
            duration(total(record, "seconds")),
        )  # fmt: skip
        values = tuple(flat.get(key, "not set") for key in keys)
        found.append(Column(called[index], index % 8 + 1, values, cells))
    return found


def differences(records: Sequence[Record]) -> list[Difference]:
    """Held-out accuracy of each run against the first: mean of the paired differences by row, with its interval.

    As if in half a row each run alone had been right (Agresti and Min 2005): equal verdicts on a few rows are no proof
    of equal runs.
    """
    called = names(records)
    against = max(1, len(records) - 1)
    reach = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / against)
    alike = of_one_kind(records)
    first = {row.id: _right(row, alike) for row in records[0].rows}
    found = []
    for name, record in zip(called[1:], records[1:], strict=True):
        pairs = [(first[row.id], _right(row, alike)) for row in record.rows if row.id in first]
        gaps = [theirs - ours for ours, theirs in pairs if ours is not None and theirs is not None]
        if len(gaps) < FEWEST:
            text = f"only {len(gaps)} common held-out rows" if gaps else "no common held-out rows"
            found.append(Difference(name, text, None))
            continue
        gap, half = math.fsum(gaps) / len(gaps), reach * math.hypot(standard_error(gaps), 1 / (len(gaps) + 2))
        text = f"{number(100 * gap, 1, sign=True)} ± {number(100 * half, 1)} points on {number(len(gaps))} common rows"
        found.append(Difference(name, text, abs(gap) > half))
    return found


def _right(row: HeldOutRow, alike: bool) -> float | None:
    return row.accuracy if alike else row.accuracy_of_change

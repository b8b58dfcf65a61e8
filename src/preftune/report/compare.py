"""Several runs side by side: in which keys they differ, and which differences are more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from msgspec import Struct

from preftune.diagnosis.finding import number, share, share_error
from preftune.record.reader import HeldOutRow, Record
from preftune.record.statistics import mean, standard_error
from preftune.report.words import duration, objective, total

FEWEST = 10  # shared rows below which nothing is concluded
CONFIDENCE = 0.95  # over all runs of the page together, so that many runs do not make a difference by chance
RESULTS = ("Accuracy", "per token", "Margin", "Chosen", "Rejected", "Length corr.", "Loss", "Steps", "Time")
SINCE_START = ("Since start: accuracy", "margin", *RESULTS[3:])


class Column(Struct, frozen=True):
    """One run in the table. values: its settings that differ, in the order of the keys; cells: its results."""

    name: str
    color: int
    values: tuple[str, ...]
    cells: tuple[str, ...]


class Difference(Struct, frozen=True):
    """A run against the first one on the rows that both have held out. beyond_noise: None where rows are too few."""

    name: str
    text: str
    beyond_noise: bool | None


def names(records: Sequence[Record]) -> list[str]:
    """Folder names, with as many parent folders in front as it takes to tell the runs apart."""
    paths = [record.path.resolve().parts for record in records]
    for depth in range(1, max(map(len, paths)) + 1):
        short = ["/".join(path[-depth:]) for path in paths]
        if len(set(short)) == len(short):
            return short
    return [f"{record.name} ({index})" for index, record in enumerate(records, 1)]


def differing(records: Sequence[Record]) -> list[str]:
    """Dotted keys of run.toml whose values are not the same in all runs; `out` always differs and is left out."""
    runs = settings(records)
    keys = dict.fromkeys(key for run in runs for key in run)
    return [key for key in keys if key != "out" and len({run.get(key) for run in runs}) > 1]


def settings(records: Sequence[Record]) -> list[dict[str, str]]:
    """Every key of each run, dotted, as text.

    Different objectives have different keys, so there one entry describes each: its name, and of its keys those in
    which runs of that name differ. The kind of reference is left out where it follows from the name.
    """
    runs = [_flat(record.run) | _used(record) for record in records]
    by_name: dict[str, list[dict[str, str]]] = {}
    for run in runs:
        by_name.setdefault(run.get("objective.name", ""), []).append(run)
    if len(by_name) < 2:
        return runs
    follows = all(len({run.get("reference.kind") for run in group}) == 1 for group in by_name.values())
    hidden = {"reference.kind"} if follows else set()
    described = []
    for record, run in zip(records, runs, strict=True):
        group = by_name[run.get("objective.name", "")]
        text = objective(record) if "objective.parts" in run else run.get("objective.name", "")
        for key in run:
            if key.startswith("objective.") and key != "objective.parts" and len({r.get(key) for r in group}) > 1:
                text += f" {key.partition('.')[2]}={run[key]}"
        others = {key: value for key, value in run.items() if not key.startswith("objective.") and key not in hidden}
        described.append({"objective": text, **others})
    return described


def _used(record: Record) -> dict[str, str]:
    """What was used for keys that the configuration may leave open."""
    return {} if record.data.max_tokens is None else {"data.max_tokens": str(record.data.max_tokens)}


def _flat(value: object, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}".strip(".")).items()}
    text = f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
    return {prefix: text}


def comparable(records: Sequence[Record]) -> bool:
    """Whether accuracy and margin mean the same in all runs: that follows from their objectives and references."""
    keys = ("reference.kind", "reference.path", "objective.per_token", "aggregate")
    return len({(objective(record), *(str(record.setting(key)) for key in keys)) for record in records}) == 1


def columns(records: Sequence[Record]) -> list[Column]:
    """The table's content, one entry a run."""
    keys, alike = differing(records), comparable(records)
    table = []
    for index, (name, record, run) in enumerate(zip(names(records), records, settings(records), strict=True)):
        end, rows = record.end, record.judged
        accuracy = end.get("accuracy" if alike else "accuracy_of_change")
        error = f" ± {number(100 * share_error(accuracy, rows), 1)}" if accuracy is not None and rows else ""
        chosen, rejected = end.get("chosen_logp_change"), end.get("rejected_logp_change")
        gained = None if chosen is None or rejected is None else chosen - rejected
        cells = (
            f"{share(accuracy)}{error}",
            *((share(end.get("accuracy_per_token")), number(end.get("margin"), 1)) if alike else (number(gained, 1),)),
            number(chosen, 1, sign=True), number(rejected, 1, sign=True),
            number(end.get("reward_length_correlation"), 2),
            number(end.get("loss", record.recent("loss")), 3), number(len(record.steps)),
            duration(total(record, "seconds")),
        )  # fmt: skip
        table.append(Column(name, index % 8 + 1, tuple(run.get(key, "not set") for key in keys), cells))
    return table


def differences(records: Sequence[Record]) -> list[Difference]:
    """Held-out accuracy of each run against the first: mean of the paired differences by row, with its interval.

    As if in half a row each run alone had been right (Agresti and Min 2005): equal verdicts on a few rows are no proof
    of equal runs.
    """
    quantile = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(1, len(records) - 1))
    alike = comparable(records)
    first = {row.id: _verdict(row, alike) for row in records[0].rows}
    results = []
    for name, record in zip(names(records)[1:], records[1:], strict=True):
        pairs = [(first[row.id], _verdict(row, alike)) for row in record.rows if row.id in first]
        gaps = [second - base for base, second in pairs if base is not None and second is not None]
        gap = mean(gaps)
        if gap is None or len(gaps) < FEWEST:
            text = f"only {len(gaps)} common held-out rows" if gaps else "no common held-out rows"
            results.append(Difference(name, text, None))
            continue
        half = quantile * math.hypot(standard_error(gaps), 1 / (len(gaps) + 2))
        points = f"{number(100 * gap, 1, sign=True)} ± {number(100 * half, 1)} points"
        results.append(Difference(name, f"{points} on {number(len(gaps))} common rows", abs(gap) > half))
    return results


def _verdict(row: HeldOutRow, alike: bool) -> float | None:
    return row.accuracy if alike else row.accuracy_of_change

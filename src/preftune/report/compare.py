"""Several runs side by side: in which keys they differ, and which differences are more than noise."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from statistics import variance
from typing import Literal

from msgspec import Struct

from preftune.diagnosis.finding import number, share
from preftune.record.reader import Record
from preftune.record.statistics import Estimate, estimate, mean, student_quantile
from preftune.report.words import duration, objective, spent
from preftune.table import flatten

FEWEST = 10  # shared rows below which nothing is concluded
CONFIDENCE = 0.95  # over all runs of the page together, so that many runs do not make a difference by chance
RESULTS = ("Accuracy", "per token", "Margin", "Chosen", "Rejected", "Length corr.", "Loss", "Steps", "Time")
OF_DRAWS = ("Score", "KL", "Ceiling", "Tokens", "Ended", "Steps", "Time")
SINCE_START = ("Since start: accuracy", "margin", *RESULTS[3:])


class Column(Struct, frozen=True):
    """One run in the table. values: its settings that differ, in the order of the keys; cells: its results."""

    name: str
    color: int
    values: tuple[str, ...]
    cells: tuple[str, ...]


class Difference(Struct, frozen=True):
    """A setting against the first one on the rows that all of their runs have held out."""

    name: str
    text: str
    verdict: Literal["beyond noise", "within noise", "cannot be told"]


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
    runs = [{key: _text(value) for key, value in flatten(record.run).items()} | _used(record) for record in records]
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


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def comparable(records: Sequence[Record]) -> bool:
    """Whether accuracy and margin mean the same in all runs: that follows from their objectives and references."""
    keys = ("reference.kind", "reference.path", "objective.per_token", "aggregate")
    return len({(objective(record), *(str(record.setting(key)) for key in keys)) for record in records}) == 1


def results(records: Sequence[Record]) -> tuple[str, ...]:
    """Titles of the cells of `columns`."""
    if draw(records):
        return OF_DRAWS
    return (*(("Perplexity",) if _imitate(records) else ()), *(RESULTS if comparable(records) else SINCE_START))


def draw(records: Sequence[Record]) -> bool:
    """Whether all runs draw what they learn from."""
    return all(record.phases for record in records)


def of_draws(record: Record) -> tuple[str, ...]:
    """The cells of `OF_DRAWS`: held out, or of the last phase."""
    last = record.end if record.end.get("score") is not None else next(reversed(record.phases), {})
    error = f" ± {number(last.get('score_error'))}" if last.get("score_error") else ""
    return (f"{number(last.get('score'))}{error}", number(last.get("kl"), 2), number(last.get("ceiling")),
            number(last.get("tokens")), share(last.get("ended")), number(len(record.steps)),
            duration(spent(record)))  # fmt: skip


def _imitate(records: Sequence[Record]) -> bool:
    """Whether any run has a perplexity, as those of SFT have."""
    return any(record.end.get("perplexity") is not None for record in records)


def columns(records: Sequence[Record]) -> list[Column]:
    """The table's content, one entry a run."""
    keys, alike, imitate = differing(records), comparable(records), _imitate(records)
    table = []
    for index, (name, record, run) in enumerate(zip(names(records), records, settings(records), strict=True)):
        end, accuracy = record.end, record.accuracy("accuracy" if alike else "accuracy_of_change")
        error = f" ± {number(100 * accuracy.error, 1)}" if accuracy is not None and accuracy.certain else ""
        chosen, rejected = end.get("chosen_logp_change"), end.get("rejected_logp_change")
        gained = None if chosen is None or rejected is None else chosen - rejected
        cells = (
            *((number(end.get("perplexity")),) if imitate else ()),
            f"{share(accuracy and accuracy.value)}{error}",
            *((share(end.get("accuracy_per_token")), number(end.get("margin"), 1)) if alike else (number(gained, 1),)),
            number(chosen, 1, sign=True), number(rejected, 1, sign=True),
            number(end.get("reward_length_correlation"), 2),
            number(end.get("loss", record.recent("loss")), 3), number(len(record.steps)),
            duration(spent(record)),
        )  # fmt: skip
        values = tuple(run.get(key, "not set") for key in keys)
        table.append(Column(name, index % 8 + 1, values, of_draws(record) if draw(records) else cells))
    return table


def settings_of(records: Sequence[Record]) -> list[list[int]]:
    """Indices of the records, those together that differ in their seed alone; in order of the first of each.

    A run repeated with the same seed tells nothing of the spread between seeds, so it stands by itself.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    repeats: Counter[tuple[str, str]] = Counter()
    for index, run in enumerate(settings(records)):
        key = str(sorted((key, value) for key, value in run.items() if key not in ("out", "seed")))
        seed = run.get("seed", "")
        groups.setdefault((key, repeats[key, seed]), []).append(index)
        repeats[key, seed] += 1
    return list(groups.values())


def differences(records: Sequence[Record]) -> list[Difference]:
    """Held-out accuracy of each setting against the first: mean of the paired differences by row, with its interval.

    Runs that differ in their seed alone are one setting: its rows' verdicts are means over the seeds, and an interval
    is no narrower than the spread between seeds allows.
    """
    groups, every = settings_of(records), names(records)
    level = 1 - (1 - CONFIDENCE) / max(1, len(groups) - 1)
    alike, results = comparable(records), []
    for group in groups[1:]:
        name = every[group[0]] + (f" and {len(group) - 1} more seeds" if len(group) > 1 else "")
        first, second = ([_verdicts(records[i], alike) for i in indices] for indices in (groups[0], group))
        keys = [key for key in first[0] if all(key in run for run in (*first, *second))]
        gap = _gap(first, second, keys)
        if gap is None or gap.rows < FEWEST or not gap.certain:
            text = f"only {len(keys)} common held-out rows" if keys else "no common held-out rows"
            if gap is not None and not gap.certain and gap.rows >= FEWEST:
                text = f"{number(100 * gap.value, 1, sign=True)} points on {number(len(keys))} common rows, but " \
                    f"they have only {gap.prompts} prompt{'s' if gap.prompts > 1 else ''}"  # fmt: skip
            results.append(Difference(name, text, "cannot be told"))
            continue
        half = max(gap.half_width(level), _seed_half_width(first, second, keys, level))
        points = f"{number(100 * gap.value, 1, sign=True)} ± {number(100 * half, 1)} points"
        shared = f" of {number(gap.prompts)} prompts" if gap.prompts < gap.rows else ""
        verdict = "beyond noise" if abs(gap.value) > half else "within noise"
        results.append(Difference(name, f"{points} on {number(gap.rows)} common rows{shared}", verdict))
    return results


def seeds_note(records: Sequence[Record]) -> str:
    """What the intervals are of: held-out rows alone, or seeds too; and what old records cannot tell."""
    groups = settings_of(records)
    seeds = max(map(len, groups))
    sentences = ["Seeds were not varied, so noise is that of the held-out rows alone."]
    if seeds > 1:
        sentences = [
            "Runs that differ in their seed alone are pooled, and their spread is the least that noise can be."
        ]
        if len(groups) == 1:
            values = [x for record in records if (x := record.end.get("accuracy")) is not None]
            spread = f": {share(min(values))} to {share(max(values))}" if values else ""
            sentences = [f"All runs differ in their seed alone; what they differ in is noise{spread}."]
    if not all(record.knows_prompts for record in records):
        sentences.append("A record of an earlier version does not say which rows share a prompt, so its errors are too "
                         "small where some do.")  # fmt: skip
    return " ".join(sentences)


Verdicts = dict[Hashable, tuple[float, str, bool | None]]  # of each row: verdict, prompt and, of a rating, its class


def _verdicts(record: Record, alike: bool) -> Verdicts:
    """The rows that were judged, by their place; in older records by their id, and which of its occurrences it is."""
    occurrences: Counter[str] = Counter()
    verdicts: Verdicts = {}
    for index, row in enumerate(record.rows):
        occurrences[row.id] += 1
        verdict = row.accuracy if alike else row.accuracy_of_change
        if verdict is not None:
            key = row.place or (row.id, occurrences[row.id])
            verdicts[key] = verdict, row.prompt or f"row {index}", row.good
    return verdicts


def _gap(first: Sequence[Verdicts], second: Sequence[Verdicts], keys: Sequence[Hashable]) -> Estimate | None:
    means = [[mean(run[key][0] for run in runs) or 0.0 for key in keys] for runs in (first, second)]
    gaps = [new - old for old, new in zip(*means, strict=True)]
    described = [first[0][key] for key in keys]
    return estimate(gaps, [prompt for _, prompt, _ in described], [good for *_, good in described], share=True)


def _seed_half_width(
    first: Sequence[Verdicts], second: Sequence[Verdicts], keys: Sequence[Hashable], level: float
) -> float:
    """Half of the interval that the spread of accuracies between seeds allows; 0 where no seed was varied."""
    accuracies = [[mean(run[key][0] for key in keys) or 0.0 for run in runs] for runs in (first, second)]
    freedom = sum(len(runs) - 1 for runs in accuracies)
    if not freedom:
        return 0.0
    pooled = math.fsum(variance(runs) * (len(runs) - 1) for runs in accuracies if len(runs) > 1) / freedom
    error = math.sqrt(pooled * math.fsum(1 / len(runs) for runs in accuracies))
    return student_quantile(1 - (1 - level) / 2, freedom) * error

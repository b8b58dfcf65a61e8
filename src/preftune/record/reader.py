"""A run folder as one frozen value. Findings and pages are made from this and from nothing else.

Only `run.toml` has to be there: a run that was killed before its first step is still a record. Numbers that JSON
cannot hold stand in the files as "NaN", "Infinity" and "-Infinity" and are floats again here.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from preftune.errors import CORRUPT, UserError
from preftune.files import read_lines, reported
from preftune.record.schema import EVALUATION, STEP
from preftune.rows.account import Account

METERS = STEP.keys() | EVALUATION.keys()  # of any other key, a later version's, only numbers are kept
SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
RECENT = 0.1  # share of the steps whose mean stands for "now": one step's rows are too few to speak for the run

Numbers = dict[str, float | None]
Cell = str | int | float | bool | None
T = TypeVar("T")


class Event(Struct, frozen=True):
    """Something that happened once. step: updates done before it; text: one sentence; details: its further keys."""

    event: str
    step: int | None = None
    text: str = ""
    details: dict[str, object] = {}


class HeldOutRow(Struct, frozen=True, kw_only=True):
    """One held-out row at the last evaluation; the fields are those of `meters.ROW`."""

    id: str
    margin: float | None = None
    accuracy: float | None = None
    accuracy_of_change: float | None = None
    chosen_logp: float | None = None
    rejected_logp: float | None = None
    chosen_logp_change: float | None = None
    rejected_logp_change: float | None = None
    chosen_tokens: float | None = None
    rejected_tokens: float | None = None


class ExtraTable(Struct, frozen=True):
    """A table that the run's author wants in its page."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


class Rewrite(Struct, frozen=True):
    """What the model wrote to one prompt before and after training."""

    prompt: str
    before: str
    after: str


class Extras(Struct, frozen=True):
    """Additions of the run's author."""

    tables: tuple[ExtraTable, ...] = ()
    samples: tuple[Rewrite, ...] = ()


class Record(Struct, frozen=True, kw_only=True):
    """A run folder.

    run_text: run.toml as it stands; run: the same, read. steps and evaluations: one dict of numbers each, in
    order of step, with the keys of `meters.STEP` and `meters.EVALUATION`; a value that does not exist is None.
    rows: the held-out rows at the last evaluation.
    """

    path: Path
    run_text: str = ""
    run: dict[str, object] = {}
    environment: dict[str, object] = {}
    data: Account = Account()
    steps: tuple[Numbers, ...] = ()
    evaluations: tuple[Numbers, ...] = ()
    rows: tuple[HeldOutRow, ...] = ()
    events: tuple[Event, ...] = ()
    extras: Extras = Extras()

    @staticmethod
    def open(path: Path | str) -> Record:
        """Read a run folder. Raises UserError where it is none or where a file of it is damaged."""
        folder = Path(path)
        if not (folder / "run.toml").is_file():
            hint = "Name the `out` folder of a run; it holds run.toml and metrics.jsonl."
            raise UserError("not the record of a run: there is no run.toml in it.", location=str(folder), hint=hint)
        text, run = _configuration(folder / "run.toml")
        return Record(
            path=folder,
            run_text=text,
            run=run,
            environment=_json(folder / "environment.json", dict[str, object]) or {},
            data=_json(folder / "data.json", Account) or Account(),
            steps=_numbered(folder / "metrics.jsonl"),
            evaluations=_numbered(folder / "evaluations.jsonl"),
            rows=tuple(
                _typed(line, HeldOutRow, location) for line, location in _lines(folder / "evaluation_rows.jsonl")
            ),
            events=tuple(_event(line, location) for line, location in _lines(folder / "events.jsonl")),
            extras=_json(folder / "extras.json", Extras) or Extras(),
        )

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @property
    def start(self) -> Numbers:
        """The evaluation before training; empty where there was none."""
        return next((e for e in self.evaluations if e["step"] == 0), {})

    @property
    def end(self) -> Numbers:
        """The last evaluation after at least one step; empty where there was none."""
        return next((e for e in reversed(self.evaluations) if e["step"]), {})

    @property
    def judged(self) -> float:
        """Held-out rows that the accuracy is of: with pairs, only those; all where the record does not hold rows."""
        last = self.evaluations[-1] if self.evaluations else {}
        if last.get("accuracy") is None:
            return 0.0
        paired = [row for row in self.rows if row.margin is not None]
        return sum(row.accuracy is not None for row in paired or self.rows) or last.get("rows") or 0.0

    def gain(self, key: str) -> float | None:
        """End minus start of an evaluated number, or None where either is missing."""
        first, last = self.start.get(key), self.end.get(key)
        return None if first is None or last is None else last - first

    def recent(self, key: str) -> float | None:
        """Mean of a number over the last tenth of the steps, finite values only."""
        return mean(step.get(key) for step in self.steps[-max(1, round(RECENT * len(self.steps))) :])

    def early(self, key: str) -> float | None:
        """Mean of a number over the first tenth of the steps, finite values only."""
        return mean(step.get(key) for step in self.steps[: max(1, round(RECENT * len(self.steps)))])

    def setting(self, key: str) -> object:
        """A value of the configuration by its dotted key, such as `objective.beta`; None where it is not set."""
        value: object = self.run
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the finite values, or None where there is none."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of independent values; infinite where there are fewer than two."""
    if len(values) < 2:
        return math.inf
    middle = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values))


def _configuration(path: Path) -> tuple[str, dict[str, object]]:
    try:
        with reported(path, "read"):
            text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except ValueError as error:  # also what undecodable bytes raise
        raise UserError(f"not TOML: {error}.", location=str(path), code=CORRUPT) from error


def _json(path: Path, kind: type[T]) -> T | None:
    """The file as a value of `kind`, or None where there is no such file."""
    if not path.exists():
        return None
    try:
        with reported(path, "read"):
            value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"not JSON: {error}.", location=str(path), code=CORRUPT) from error
    return _typed(value, kind, str(path))


def _typed(value: object, kind: type[T], location: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{error}.", location=location, code=CORRUPT) from error


def _lines(path: Path) -> list[tuple[dict[str, object], str]]:
    """Each line with its place; numbers spelled as words are floats again (an id that reads "NaN" stays one)."""
    with reported(path, "read"):
        lines = read_lines(path)
    result = []
    for number, line in enumerate(lines, 1):
        location = f"{path}:{number}"
        if not isinstance(line, dict):
            raise UserError("not a JSON object.", location=location, code=CORRUPT)
        result.append(({key: _number(value) if key != "id" else value for key, value in line.items()}, location))
    return result


def _number(value: object) -> object:
    return SPELLED.get(value, value) if isinstance(value, str) else value


def _numbered(path: Path) -> tuple[Numbers, ...]:
    """Lines by step. Where a step stands twice, as after a crash and a resume, the later line counts."""
    found: dict[float, Numbers] = {}
    for line, location in _lines(path):
        known = {key: value for key, value in line.items() if key in METERS or not isinstance(value, str | list | dict)}
        numbers = _typed(known, Numbers, location)
        step = numbers.get("step")
        if step is None or not math.isfinite(step):
            raise UserError("a line without its step.", location=location, code=CORRUPT)
        found[step] = numbers
    return tuple(found[step] for step in sorted(found))


def _event(line: dict[str, object], location: str) -> Event:
    event = _typed(line, Event, location)
    further = {key: value for key, value in line.items() if key not in ("step", "event", "text")}
    return msgspec.structs.replace(event, details=further)

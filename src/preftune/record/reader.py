"""A run folder as one frozen value. Findings and pages are made from this and from nothing else.

Only `run.toml` has to be there: a run that was killed before its first step is still a record.
Held by tests/report/test_read.py.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from preftune.errors import UserError
from preftune.events import Happened
from preftune.record.parse import Numbers, parse_events, parse_json, parse_metrics, parse_rows, parse_toml
from preftune.record.statistics import mean
from preftune.rows.account import Account

RECENT = 0.1  # share of the steps whose mean stands for "now": one step's rows are too few to speak for the run

Cell = str | int | float | bool | None


class HeldOutRow(Struct, frozen=True, kw_only=True):
    """One held-out row at the last evaluation; the fields are those of `schema.ROW`."""

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

    run_text: run.toml as it stands; run: what it says. steps and evaluations: one dict of numbers each, in order of
    step, with the keys of `schema.STEP` and `schema.EVALUATION`; a value that does not exist is None.
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
    events: tuple[Happened, ...] = ()
    extras: Extras = Extras()

    @staticmethod
    def open(path: Path | str) -> Record:
        """Read a run folder. Raises UserError where it is none or where one of its files is damaged."""
        folder = Path(path)
        if not (folder / "run.toml").is_file():
            hint = "Name the `out` folder of a run; it holds run.toml and metrics.jsonl."
            raise UserError("not the record of a run: there is no run.toml in it.", location=str(folder), hint=hint)
        text, run = parse_toml(folder / "run.toml")
        return Record(
            path=folder,
            run_text=text,
            run=run,
            environment=parse_json(folder / "environment.json", dict[str, object]) or {},
            data=parse_json(folder / "data.json", Account) or Account(),
            steps=parse_metrics(folder / "metrics.jsonl"),
            evaluations=parse_metrics(folder / "evaluations.jsonl"),
            rows=parse_rows(folder / "evaluation_rows.jsonl", HeldOutRow),
            events=parse_events(folder / "events.jsonl"),
            extras=parse_json(folder / "extras.json", Extras) or Extras(),
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
        return mean(step.get(key) for step in self.steps[-self._tenth :])

    def early(self, key: str) -> float | None:
        """Mean of a number over the first tenth of the steps, finite values only."""
        return mean(step.get(key) for step in self.steps[: self._tenth])

    @property
    def _tenth(self) -> int:
        return max(1, round(RECENT * len(self.steps)))

    def setting(self, key: str) -> object:
        """A value of the configuration by its dotted key, such as `objective.beta`; None where it is not set."""
        value: object = self.run
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

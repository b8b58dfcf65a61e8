"""A run folder as one frozen value. Findings and pages are made from this and from nothing else.

Only `run.toml` has to be there: a run that was killed before its first step is still a record.
Held by tests/report/test_read.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from preftune.errors import UserError
from preftune.events import Happened
from preftune.record.extras import Extras
from preftune.record.parse import RUN_FILE, Numbers, parse_events, parse_json, parse_metrics, parse_rows, parse_toml
from preftune.record.statistics import Estimate, estimate, mean, share_of
from preftune.rows.account import Account

RECENT = 0.1  # share of the steps whose mean stands for "now": one step's rows are too few to speak for the run


class HeldOutRow(Struct, frozen=True, kw_only=True):
    """One held-out row at the last evaluation; the fields are those of `schema.ROW`."""

    id: str
    place: str = ""
    category: str = ""
    prompt: str = ""
    margin: float | None = None
    accuracy: float | None = None
    accuracy_of_change: float | None = None
    chosen_logp: float | None = None
    rejected_logp: float | None = None
    chosen_logp_change: float | None = None
    rejected_logp_change: float | None = None
    chosen_score: float | None = None
    rejected_score: float | None = None
    chosen_tokens: float | None = None
    rejected_tokens: float | None = None
    shared_logp_change: float | None = None
    chosen_fork_change: float | None = None
    rejected_fork_change: float | None = None
    outside_fork: float | None = None
    outside_fork_change: float | None = None
    chosen_end_logp: float | None = None
    rejected_end_logp: float | None = None
    chosen_end_change: float | None = None
    rejected_end_change: float | None = None

    @property
    def good(self) -> bool | None:
        """Of a rating, its class; None of any other row."""
        return None if self.margin is not None else self.chosen_logp is not None

    @property
    def surplus(self) -> float | None:
        """Tokens that chosen has more than rejected; None of what is no pair."""
        return None if self.chosen_tokens is None or self.rejected_tokens is None else \
            self.chosen_tokens - self.rejected_tokens  # fmt: skip


class Word(Struct, frozen=True, kw_only=True):
    """A token whose count decides held-out margins; the fields are those of `schema.WORD`."""

    token: int
    text: str = ""
    pairs: int
    margin_per_token: float
    correlation: float
    z: float
    length_z: float
    label_z: float
    p: float


def prompts_of(rows: Sequence[HeldOutRow]) -> list[str]:
    """What each row shares with others: the key of its prompt, or its own where the record has none."""
    return [row.prompt or f"row {index}" for index, row in enumerate(rows)]


class Texts(Struct, frozen=True):
    """What a model writes to one prompt: the likeliest text, and some that were drawn."""

    greedy: str = ""
    draws: tuple[str, ...] = ()


class Sample(Struct, frozen=True, kw_only=True):
    """A held-out prompt with what its row says and what the model writes, before and after training."""

    prompt: str
    chosen: str | None = None
    rejected: str | None = None
    before: Texts = Texts()
    after: Texts | None = None


class Record(Struct, frozen=True, kw_only=True):
    """A run folder.

    run_text: run.toml as it stands; run: what it says. steps and evaluations: one dict of numbers each, in order of
    step, with the keys of `schema.STEP` and `schema.EVALUATION`; a value that does not exist is None. phases: as
    `schema.PHASE`, and the mean of each reward.
    rows: the held-out rows at the last evaluation; words: the tokens that decide their margins most; samples: what the
    model wrote to some held-out prompts.
    """

    path: Path
    run_text: str = ""
    run: dict[str, object] = {}
    environment: dict[str, object] = {}
    data: Account = Account()
    steps: tuple[Numbers, ...] = ()
    evaluations: tuple[Numbers, ...] = ()
    phases: tuple[Numbers, ...] = ()
    rows: tuple[HeldOutRow, ...] = ()
    words: tuple[Word, ...] = ()
    events: tuple[Happened, ...] = ()
    extras: Extras = Extras()
    samples: tuple[Sample, ...] = ()

    @staticmethod
    def open(path: Path | str) -> Record:
        """Read a run folder. Raises UserError where it is none or where one of its files is damaged."""
        folder = Path(path)
        if not (folder / RUN_FILE).is_file():
            hint = "Name the `out` folder of a run; it holds run.toml and metrics.jsonl."
            raise UserError("not the record of a run: there is no run.toml in it.", location=str(folder), hint=hint)
        text, run = parse_toml(folder / RUN_FILE)
        return Record(
            path=folder,
            run_text=text,
            run=run,
            environment=parse_json(folder / "environment.json", dict[str, object]) or {},
            data=parse_json(folder / "data.json", Account) or Account(),
            steps=parse_metrics(folder / "metrics.jsonl"),
            evaluations=parse_metrics(folder / "evaluations.jsonl"),
            phases=parse_metrics(folder / "phases.jsonl"),
            rows=parse_rows(folder / "evaluation_rows.jsonl", HeldOutRow),
            words=parse_rows(folder / "evaluation_words.jsonl", Word),
            events=parse_events(folder / "events.jsonl"),
            extras=parse_json(folder / "extras.json", Extras) or Extras(),
            samples=parse_json(folder / "samples.json", tuple[Sample, ...]) or (),
        )

    def __repr__(self) -> str:
        """Where it is and how far it came; `preftune.page` and `preftune.diagnose` show the rest."""
        last = {key: value for key, value in self.end.items() if value is not None}
        shown = [f"{key}={last[key]:.4g}" for key in ("loss", "accuracy", "margin", "score", "kl") if key in last]
        return f"Record({', '.join([repr(str(self.path)), f'steps={len(self.steps)}', *shown])})"

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
    def judged_rows(self) -> tuple[HeldOutRow, ...]:
        """Held-out rows that the accuracy is of: with pairs, only those."""
        paired = tuple(row for row in self.rows if row.margin is not None)
        return tuple(row for row in paired or self.rows if row.accuracy is not None)

    @property
    def judged(self) -> float:
        """How many rows the accuracy is of; all where the record does not hold rows."""
        last = self.evaluations[-1] if self.evaluations else {}
        return 0.0 if last.get("accuracy") is None else len(self.judged_rows) or last.get("rows") or 0.0

    @property
    def knows_prompts(self) -> bool:
        """Whether each held-out row says which prompt it has; records of earlier versions do not."""
        return all(row.prompt for row in self.rows)

    def accuracy(self, key: Literal["accuracy", "accuracy_of_change"] = "accuracy") -> Estimate | None:
        """Held-out accuracy at the end with its error; without rows, as if every row had a prompt of its own."""
        value, rows = self.end.get(key), self.judged_rows
        if value is None or not math.isfinite(value):
            return None
        verdicts = [row.accuracy if key == "accuracy" else row.accuracy_of_change for row in rows]
        if not rows or any(verdict is None for verdict in verdicts):
            return share_of(value, round(self.judged))
        finite = [verdict for verdict in verdicts if verdict is not None]
        accuracy = estimate(finite, prompts_of(rows), [row.good for row in rows], share=True)
        return accuracy and accuracy._replace(value=value)

    def average(self, value: Callable[[HeldOutRow], float | None]) -> Estimate | None:
        """Mean of a number over the held-out rows that have it, with its error."""
        known = [(x, row) for row in self.rows if (x := value(row)) is not None and math.isfinite(x)]
        return estimate([x for x, _ in known], prompts_of([row for _, row in known]))

    @property
    def rewards(self) -> list[dict[str, object]]:
        """The tables of [reward] with their names and weights."""
        reward = self.run.get("reward")
        tables = reward if isinstance(reward, list) else [reward]
        return [table for table in tables if isinstance(table, dict)]

    def gain(self, key: str) -> float | None:
        """End minus start of an evaluated number, or None where either is missing."""
        first, last = self.start.get(key), self.end.get(key)
        return None if first is None or last is None else last - first

    def recent(self, key: str) -> float | None:
        """Mean of a number over the last tenth of the steps, finite values only."""
        return mean(step.get(key) for step in self.last_steps)

    def early(self, key: str) -> float | None:
        """Mean of a number over the first tenth of the steps, finite values only."""
        return mean(step.get(key) for step in self.steps[: len(self.last_steps)])

    @property
    def last_steps(self) -> tuple[Numbers, ...]:
        """The last tenth of the steps."""
        return self.steps[-max(1, round(RECENT * len(self.steps))) :]

    def setting(self, key: str) -> object:
        """A value of the configuration by its dotted key, such as `objective.beta`; None where it is not set."""
        value: object = self.run
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

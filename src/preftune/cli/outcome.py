"""What a verb says when it is done."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from preftune.record.schema import EVALUATION

Numbers = Mapping[str, float | int | str | None]


def meters(*columns: Numbers, heads: tuple[str, ...] = ("value",)) -> Table:
    """A table of evaluation meters; those that no column has are left out. What each means stands on the page."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("meter", style="cyan", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("unit", style="dim", no_wrap=True)
    for name, meter in EVALUATION.items():
        values = [column.get(name) for column in columns]
        if name not in ("step", "seconds") and any(value is not None for value in values):
            table.add_row(name, *(number(value) for value in values), escape(meter.unit))
    return table


def number(value: float | int | str | None) -> str:
    """A number as a person reads it."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def outcome(out: Path) -> None:
    """After a run: held-out meters before and after, findings by title, and where the page is."""
    from preftune.diagnosis import diagnose
    from preftune.record.reader import Record

    record, console = Record.open(out), Console(highlight=False)
    if record.evaluations:
        console.print(meters(record.evaluations[0], record.evaluations[-1], heads=("before", "after")))
    for finding in diagnose(record):
        console.print(f"[bold]{finding.severity}[/bold]: {escape(f'{finding.title}. {finding.evidence}')}")
    console.print(f"model  {out / 'model'}\npage   {out / 'report.html'}", markup=False)


def outcomes(records: list[Path]) -> None:
    """After a sweep: the last held-out meters of each run, a line a run."""
    from preftune.record.reader import Record

    shown = {
        "loss": "loss", "accuracy": "accuracy", "accuracy_per_token": "per token",
        "accuracy_of_change": "since start", "margin": "margin",
        "chosen_logp_change": "chosen", "rejected_logp_change": "rejected",
    }  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    for head in shown.values():
        table.add_column(head, justify="right", no_wrap=True)
    for record in map(Record.open, records):
        if not record.evaluations:
            table.title, table.title_justify = "no held-out rows: of the last step, on training rows", "left"
        last = next(reversed(record.evaluations or record.steps), {})
        table.add_row(escape(record.path.name), *(number(last.get(name)) for name in shown))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)

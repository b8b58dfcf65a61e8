"""What a verb prints when it has finished."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from preftune.diagnosis import diagnose
from preftune.diagnosis.finding import number
from preftune.errors import printable
from preftune.record.reader import Record
from preftune.record.schema import EVALUATION

SWEEP_COLUMNS = {
    "loss": "loss", "accuracy": "accuracy", "accuracy_per_token": "per token", "accuracy_of_change": "since start",
    "margin": "margin", "chosen_logp_change": "chosen", "rejected_logp_change": "rejected",
}  # fmt: skip


def metrics_table(*columns: Mapping[str, float | None], titles: tuple[str, ...] = ("value",)) -> Table:
    """A table of evaluation metrics without those that no column has. What each one means stands on the page."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric", style="cyan", no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("unit", style="dim", no_wrap=True)
    for name, metric in EVALUATION.items():
        values = [column.get(name) for column in columns]
        if name not in ("step", "seconds") and any(value is not None for value in values):
            table.add_row(name, *map(number, values), escape(metric.unit))
    return table


def show_run(out: Path) -> None:
    """After a run: held-out metrics before and after, the findings, and where the model and the page are."""
    record, console = Record.open(out), Console(highlight=False)
    if record.evaluations:
        console.print(metrics_table(record.evaluations[0], record.evaluations[-1], titles=("before", "after")))
    for finding in diagnose(record):
        console.print(f"[bold]{finding.severity}[/bold]: {escape(printable(f'{finding.title}. {finding.evidence}'))}")
        for effect in finding.effects:
            console.print(f"  It shows as: {printable(effect)}", markup=False)
        console.print(f"  What to do: {printable(finding.remedy)}", markup=False)
    console.print(f"model  {out / 'model'}\npage   {out / 'report.html'}", markup=False)


def show_sweep(folders: Sequence[Path]) -> None:
    """After a sweep: a line for each run with its last held-out metrics."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    for title in SWEEP_COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for record in map(Record.open, folders):
        if not record.evaluations:
            table.title, table.title_justify = "no rows are held out: last step, on training rows", "left"
        last = next(reversed(record.evaluations or record.steps), {})
        table.add_row(escape(printable(record.path.name)), *(number(last.get(name)) for name in SWEEP_COLUMNS))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)

"""preftune check."""

from __future__ import annotations

from preftune.cli.words import run_of
from preftune.errors import printable


def check(*words: str) -> None:
    """Read all data as training would, and train nothing.

    `preftune check run.toml [key=value ...]`

    Without model.path, it reads and counts rows; with it, it also tokenizes them, shows three with the tokens that
    are scored, and works out steps, lengths and memory.

    Parameters
    ----------
    words
        A configuration file, and keys that differ from it.
    """
    run = run_of(words, model=False)
    from rich.console import Console

    from preftune.cli import view
    from preftune.rows.split import read_rows

    console = Console(highlight=False, soft_wrap=True)
    rows = read_rows(run.data)
    for part, reading in rows.readings.items():
        console.print(view.read(part, reading))
    if not run.model.path:
        console.print(view.kinds(rows.train))
        for row in rows.train[:3]:
            console.print(view.row(row))
        console.print("[dim]Without model.path, rows are not tokenized.[/dim]")
        return
    with console.status("loading the tokenizer"):
        from preftune.run.preview import preview

        planned = preview(run, rows)
    for part, tokenized in planned.dataset.tokenized.items():
        console.print(view.tokenized(part, tokenized))
    for group in planned.dataset.train[:3]:
        console.print(view.group(group, planned.dataset.tokenizer))
    for sentence, _ in planned.notes.values():
        console.print(printable(sentence), markup=False)
    console.print(view.lengths(planned.dataset.account))
    console.print(view.work(planned))

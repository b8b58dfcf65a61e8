"""preftune check."""

from __future__ import annotations

from preftune.cli.words import run_of


def check(*words: str) -> None:
    """Read all data as training would, and train nothing.

    `preftune check run.toml [key=value ...]`

    Without model.path, rows are read and counted; with it, they are also tokenized, three are shown with what is
    scored, and steps, lengths and memory are worked out.

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
        console.print("[dim]No model.path: rows were read, and not tokenized.[/dim]")
        return
    with console.status("loading the tokenizer"):
        from preftune.run.preview import preview

        found = preview(run, rows)
    for part, tokenized in found.prepared.tokenized.items():
        console.print(view.tokenized(part, tokenized))
    for group in found.prepared.train[:3]:
        console.print(view.group(group, found.tokenizer))
    for sentence, _ in found.notes.values():
        console.print(sentence, markup=False)
    console.print(view.lengths(found.prepared.account))
    console.print(view.work(found))

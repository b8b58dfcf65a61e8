"""preftune score."""

from __future__ import annotations

from pathlib import Path

from preftune.cli.words import run_of
from preftune.errors import UserError
from preftune.events import Note, emit


def score(*words: str, out: Path = Path("scores.jsonl")) -> None:
    """Score every row of data.train under two models.

    `preftune score model.path=A reference.path=B data.train=FILE`

    Parameters
    ----------
    words
        A configuration file, and keys that differ from it.
    out
        JSON-lines file to write, one object a row.
    """
    if out.is_dir():
        raise UserError("this is a folder.", location=f"--out {out}", hint="Name a file.")
    run = run_of(words)
    from preftune.record.terminal import terminal

    with terminal():
        emit(Note("loading torch and transformers"))
        from preftune.run.score import score

        means = score(run, out)
    from rich.console import Console

    from preftune.cli.outcome import metrics_table
    from preftune.distributed import current

    if current().first:
        Console().print(metrics_table(means))
        print(out)

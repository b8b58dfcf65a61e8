"""preftune score."""

from __future__ import annotations

from pathlib import Path

from preftune.cli.words import run_of
from preftune.errors import UserError


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
        raise UserError("is a folder; a file is to be written.", location=f"--out {out}")
    run = run_of(words)
    from preftune.cli.progress import progress

    with progress() as show:
        show("loading torch and transformers")
        from preftune.run.score import score as go

        found = go(run, out, show=show)
    from rich.console import Console

    from preftune.cli.outcome import meters
    from preftune.distributed import current

    if current().first:
        Console().print(meters(found))
        print(out)

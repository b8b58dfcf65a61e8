"""preftune sweep."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from preftune.cli.words import file_of
from preftune.config.load import parse
from preftune.config.vary import combinations
from preftune.errors import UserError
from preftune.events import Note, emit
from preftune.record.writer import SWEEP_PAGE, assert_sweep_writable


def sweep(*words: str, out: Path = Path("sweep"), resume: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Train once for each combination of keys.

    `preftune sweep run.toml objective=dpo,ipo objective.beta=0.05,0.1`

    Where an objective lacks a key, its runs leave that key out. All runs share one reference store, and one page
    compares them.

    Parameters
    ----------
    words
        A configuration file, and keys with one value or several, separated by commas.
    out
        Folder for the runs and for compare.html.
    resume
        Go on with the sweep that is in the folder.
    """
    file, keys = file_of(words)
    if any(word.partition("=")[0].strip() == "out" for word in keys):
        hint = "Use --out to name the folder that holds them all."
        raise UserError("a sweep names the folders of its runs itself.", location="out", hint=hint)
    runs = combinations(parse(Path(file)) if file else {}, keys)
    if "RANK" not in os.environ:
        assert_sweep_writable(out, [out / variant.folder for variant in runs], resume=resume)
    from preftune.record.terminal import terminal

    with terminal():
        emit(Note(f"{len(runs)} runs; loading torch and transformers"))
        from preftune.run.sweep import sweep

        folders = sweep(runs, out, resume=resume)
    from preftune.cli.outcome import show_sweep
    from preftune.distributed import current

    if current().first:
        show_sweep(folders)
        print(out / SWEEP_PAGE)

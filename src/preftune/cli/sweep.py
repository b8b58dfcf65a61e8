"""preftune sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from preftune.cli.words import file_of
from preftune.config.load import parse
from preftune.config.vary import combinations
from preftune.errors import UserError


def sweep(*words: str, out: Path = Path("sweep"), resume: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Do a run for each combination of keys.

    `preftune sweep run.toml objective=dpo,ipo objective.beta=0.05,0.1`

    Keys that an objective lacks are left out of its runs. All runs share one reference store; one page compares them.

    Parameters
    ----------
    words
        A configuration file, and keys with one value or several, separated by commas.
    out
        Folder for the runs and for compare.html.
    resume
        Go on with the runs that are in the folder.
    """
    file, keys = file_of(words)
    if any(word.partition("=")[0].strip() == "out" for word in keys):
        raise UserError(
            "a sweep names the folders of its runs itself.", location="out", hint="Use --out for all of them."
        )
    runs = combinations(parse(Path(file)) if file else {}, keys)
    from preftune.cli.progress import progress

    with progress() as show:
        show(f"{len(runs)} runs; loading torch and transformers")
        from preftune.run.sweep import sweep as go

        done = go(runs, out, resume=resume, show=show)
    from preftune.cli.outcome import outcomes
    from preftune.distributed import current

    if current().first:
        outcomes(done)
        print(out / "compare.html")

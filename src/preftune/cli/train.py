"""preftune train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from preftune.cli.words import run_of
from preftune.events import Note, emit
from preftune.record.writer import assert_writable


def train(
    *words: str,
    resume: Annotated[bool, Parameter(negative="")] = False,
    force: Annotated[bool, Parameter(negative="")] = False,
    allow_change: str = "",
) -> None:
    """Tune a model.

    `preftune train run.toml [key=value ...]`

    On several GPUs, or processes of any kind: `torchrun --standalone --nproc-per-node N -m preftune train run.toml`

    Parameters
    ----------
    words
        A configuration file, and keys that differ from it.
    resume
        Go on with the run in the folder `out`, to the same bits; where there is none, start one.
    force
        Replace the run that is in the folder `out`.
    allow_change
        Keys, separated by commas, in which a resumed run may differ.
    """
    run = run_of(words)
    if "RANK" not in os.environ:  # a folder that cannot be used is refused before torch is imported
        assert_writable(Path(run.out).expanduser(), resume=resume, force=force)
    from preftune.record.terminal import terminal

    with terminal():
        emit(Note("loading torch and transformers"))
        from preftune.run.train import train

        out = train(run, resume=resume, force=force, allow_change=[key for key in allow_change.split(",") if key])
    from preftune.cli.outcome import show_run
    from preftune.distributed import current

    if current().first:
        show_run(out)

"""Runs that differ in given keys, one after the other: they share one reference store, and one page compares them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from preftune import events, files, signals
from preftune.config.resolve import resolve
from preftune.config.vary import Variant
from preftune.distributed import process_group
from preftune.errors import UserError
from preftune.events import Note, emit
from preftune.record.reader import Record
from preftune.record.terminal import default_progress
from preftune.record.writer import SWEEP_PAGE, assert_sweep_writable
from preftune.report import page
from preftune.rows.split import read_rows
from preftune.run.dataset import cached_loader
from preftune.run.match_rows import match_rows
from preftune.run.preview_tasks import preview_tasks
from preftune.run.train import train


def sweep(variants: Sequence[Variant], out: Path, *, resume: bool = False) -> list[Path]:
    """Do every run below `out` and write `out`/compare.html; returns the folders of the records.

    Rows are read and tokenized once. resume: go on with what is there, finished runs included. Raises UserError.
    """
    records, load, folders = [], cached_loader(), [out / variant.folder for variant in variants]
    with process_group() as dist, signals.listening(), default_progress() if dist.first else events.silence():
        if dist.first:
            assert_sweep_writable(out, folders, resume=resume)
        with signals.interruptible():
            for variant in variants:  # a run that is refused is refused before the first
                run = resolve(variant.run)
                if not isinstance(run.model.path, str):
                    message = "each run would begin from the model that the one before has tuned."
                    raise UserError(message, location="model.path", hint="Name it, so that each run loads it anew.")
                if run.rollout is None:
                    match_rows(run, load(run))
                else:
                    preview_tasks(run, run.rollout, read_rows(run.data))
        for number, (variant, folder) in enumerate(zip(variants, folders, strict=True), 1):
            if stop := signals.agreed(dist):
                raise signals.Stopped(stop)
            without = f" (it has no {', '.join(variant.lacks)})" if variant.lacks else ""
            emit(Note(f"run {number} of {len(variants)}: {folder.name}{without}"))
            records.append(train(replace(variant.run, out=str(folder)), resume=resume, load=load))
        if dist.first:
            files.write(out / SWEEP_PAGE, page([Record.open(path) for path in records]))
    return records

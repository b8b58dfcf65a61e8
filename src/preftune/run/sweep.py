"""Runs that differ in given keys, one after the other: they share one reference store, and one page compares them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from preftune import files
from preftune.config.resolve import resolve
from preftune.config.vary import Variant
from preftune.distributed import process_group
from preftune.errors import UserError
from preftune.record.reader import Record
from preftune.record.show import Show, silent
from preftune.record.writer import free
from preftune.report import page
from preftune.run.dataset import gather_once
from preftune.run.match_rows import match_rows
from preftune.signals import listening, stopped
from preftune.training.loop import train

AGAIN = "Go on with --resume, or choose another --out."


def sweep(variants: Sequence[Variant], out: Path, *, resume: bool = False, show: Show = silent) -> list[Path]:
    """Do every run below `out` and write `out`/compare.html; returns the folders of the records.

    Rows are read and turned into tokens once. resume: go on with what is there, finished runs included.
    Raises UserError.
    """
    done, gather = [], gather_once()
    folders = [out / (",".join(variant.words).replace("/", "_") or "run") for variant in variants]
    with process_group() as dist, listening() as stop:
        tell = show if dist.first else silent
        others = sorted({path.parent for path in out.glob("*/identity.json")} - {*folders})
        if dist.first and others and not resume:
            raise UserError(f"another sweep is here already ({others[0].name}).", location=f"--out {out}", hint=AGAIN)
        for variant, folder in zip(variants, folders, strict=True):  # what the last refuses shows before the first
            if dist.first:
                free(folder, resume, AGAIN)
            run = resolve(variant.run)
            match_rows(run, gather(run, tell).prepared)
        for number, ((_, run, lacks), folder) in enumerate(zip(variants, folders, strict=True), 1):
            if asked := stop.agreed(dist):
                raise stopped(asked)
            without = f" (it has no {', '.join(lacks)})" if lacks else ""
            tell(f"run {number} of {len(variants)}: {folder.name}{without}")
            one = msgspec.structs.replace(run, out=str(folder))
            done.append(train(one, resume=resume, show=show, gather=gather))
        if dist.first:
            files.write(out / "compare.html", page([Record.open(path) for path in done]))
    return done

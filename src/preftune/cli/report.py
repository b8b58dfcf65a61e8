"""preftune report."""

from __future__ import annotations

from pathlib import Path


def report(*records: Path, out: Path | None = None) -> None:
    """Write the page of a record, or one page that compares several.

    `preftune report RUN [RUN ...]`

    Parameters
    ----------
    records
        Run folders.
    out
        File to write; by default report.html in the run folder, or compare.html in this folder for several.
    """
    from preftune import files
    from preftune.errors import UserError
    from preftune.record.reader import Record
    from preftune.report import page

    if not records:
        raise UserError("the command names no run folder.", hint="Write for instance: preftune report run")
    path = out or (records[0] / "report.html" if len(records) == 1 else Path("compare.html"))
    files.write(path, page([Record.open(record) for record in records]))
    print(path)

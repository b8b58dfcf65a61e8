"""From files, hub datasets or Python values to rows, with an account of each: `read == len(rows) + len(skipped)`.

Wrong keys and types raise one error that lists them all; rows that teach nothing are skipped by reason; what is odd
but usable is kept and reported once. `parse.py` says how the first two differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from preftune.errors import Problem, UserError
from preftune.rows.account import merge_malformed
from preftune.rows.formats import Format, detect_format
from preftune.rows.parse import MalformedRow, SkippedRow
from preftune.rows.quality import check, remarks, unread_fields
from preftune.rows.row import Place, Row
from preftune.rows.sources import Source, from_objects, load

IN_PYTHON = "rows"  # stands for a file's name where rows are Python values


class Reading(Struct, frozen=True):
    """What was read.

    rows: the usable rows in their order; skipped: one problem for each row left out; notes: what is odd about rows
    that are kept, once for each reason; read: the number of rows seen; files: SHA-256 of each file.
    """

    rows: list[Row]
    skipped: list[Problem]
    notes: list[Problem]
    read: int
    files: dict[str, str]


def read(source: str | Iterable[object], *, limit: int | None = None) -> Reading:
    """All rows of a file, of a list of files, of a hub dataset (`owner/name` or `owner/name:split`), or of an iterable
    of mappings, such as a list or a `datasets.Dataset`, which is gone through once.

    limit: rows to take of each file, all if None. Raises one UserError that lists every malformed row of all files.
    """
    reader = _Reader()
    names = _names(source)
    for name in names:
        try:
            reader.add(name, load(name, limit))
        except UserError as error:
            reader.problems += error.problems
            reader.code = error.code
    if not names:
        reader.add(IN_PYTHON, from_objects(source, IN_PYTHON, limit))
    if reader.problems:
        raise UserError(reader.problems, code=reader.code)
    notes = [*reader.notes, *remarks(reader.rows)]
    return Reading(reader.rows, reader.skipped, notes, len(reader.rows) + len(reader.skipped), reader.files)


def _names(source: str | Iterable[object]) -> list[str]:
    """The names of files that the source is, none if it is rows."""
    if isinstance(source, str):
        return [source]
    if isinstance(source, list | tuple) and all(isinstance(name, str) for name in source):
        return [str(name) for name in source]
    return []


class _Reader:
    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.skipped: list[Problem] = []
        self.problems: list[Problem] = []
        self.files: dict[str, str] = {}
        self.notes: list[Problem] = []
        self.code = 2

    def add(self, name: str, source: Source) -> None:
        if source.digest in self.files.values():
            self.notes.append(Problem("the same file a second time: its rows count twice.", name, reason="file.twice"))
        self.files[name] = source.digest
        self.problems += source.problems
        malformed: list[tuple[MalformedRow, Place]] = []
        first: tuple[Format, Place] | None = None
        unread: dict[str, Mapping[str, object]] = {}
        for place, value in source.records:
            try:
                form = detect_format(value)
                first = first or (form, place)
                if form is not first[0]:
                    began = f"the file began with {first[0].name} at {first[1].line}"
                    message = f"has the form {form.name}, but {began}."
                    raise MalformedRow(message, "Keep one form a file.", "row.mixed")
                for key in form.unread(value):
                    unread.setdefault(key, value)
                row = form.read(value, place)
                check(row)
                self.rows.append(row)
            except MalformedRow as error:
                malformed.append((error, place))
            except SkippedRow as error:
                self.skipped.append(Problem(error.message, str(place), reason=error.reason))
        self.problems += merge_malformed(malformed, lambda error: (error.message, error.hint, error.reason))
        if unread:
            self.notes.append(Problem(f"fields that are not used: {unread_fields(unread)}.", name,
                                      reason="fields.extra"))  # fmt: skip

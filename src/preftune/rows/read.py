"""From files, hub datasets or Python values to rows, with an account of each: `read == len(rows) + len(skipped)`.

Wrong keys and types raise one error that lists them all; rows that teach nothing are skipped by reason; what is odd
but usable is kept and reported once. `parse.py` says how the first two differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from preftune.errors import Problem, UserError
from preftune.rows.account import merge_malformed
from preftune.rows.asked import NOTHING, Asked
from preftune.rows.formats import KNOWN, Format, detect_format, fitting, intended_key, is_hole
from preftune.rows.parse import MalformedRow, SkippedRow, hole
from preftune.rows.quality import check, remarks
from preftune.rows.raw_row import ANSWERS
from preftune.rows.row import KINDS, Demo, Place, Rating, Row, Task
from preftune.rows.shares import take
from preftune.rows.sources import Source, files_of, from_objects, load
from preftune.rows.tables import with_values
from preftune.rows.tools import LISTED, OF_TEMPLATE

DETAIL = re.compile(r"\d+|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.){20,}\"|line \d+")  # what differs from one row to the next
READ_TOO = {*LISTED, OF_TEMPLATE, "history"}  # keys that several forms read
IN_PYTHON = "rows"  # stands for a file's name where rows are Python values


class Reading(Struct, frozen=True):
    """What was read.

    rows: the usable rows in their order; skipped: one problem for each row left out; notes: what is odd about rows
    that are kept, once for each reason; files: SHA-256 of each file.
    """

    rows: list[Row]
    skipped: list[Problem]
    notes: list[Problem]
    files: dict[str, str]

    @property
    def read(self) -> int:
        """The number of rows seen."""
        return len(self.rows) + len(self.skipped)


def read(
    source: str | Iterable[object],
    *,
    columns: Mapping[str, str | None] | None = None,
    shares: Sequence[float] | None = None,
    asked: Asked = NOTHING,
) -> Reading:
    """All rows of a file, of the files that a pattern such as `rows/*.jsonl` fits, of a hub dataset (`owner/name` or
    `owner/name:split`), of a list of any of these, or of an iterable of mappings, such as a list or a
    `datasets.Dataset`, which is gone through once.

    columns: key of the rows -> the key that is read, "" or None to leave it out. shares: how much of each file is taken
    (rows/shares.py); all of them once where not given. asked: the columns that functions of rewards read. Raises one
    UserError that lists every malformed row of all files.
    """
    reader, names = _Reader(columns or {}, asked), names_of(source)
    files = [(file, name) for name in names for file in files_of(name)]
    for file, _ in files:
        try:
            reader.add(file, load(file))
        except UserError as error:
            reader.problems += error.problems
            reader.code = error.code
    if not names:
        reader.add(IN_PYTHON, from_objects(source, IN_PYTHON))
    if reader.problems:
        raise UserError(reader.problems, code=reader.code)
    rows, skipped, notes = reader.rows, reader.skipped, reader.notes
    if shares is not None:
        of_entry = dict(zip(names or [IN_PYTHON], shares, strict=True))
        rows, left_out, note = take(rows, dict(files or [(IN_PYTHON, IN_PYTHON)]), of_entry)
        skipped, notes = [*skipped, *left_out], [*notes, note]
    return Reading(rows, skipped, [*notes, *remarks(rows)], reader.files)


def names_of(source: str | Iterable[object]) -> list[str]:
    """The names of files that the source is, none if it is rows."""
    if isinstance(source, str):
        return [source]
    if isinstance(source, list | tuple) and all(isinstance(name, str) for name in source):
        return [str(name) for name in source]
    return []


class _Reader:
    def __init__(self, columns: Mapping[str, str | None], asked: Asked) -> None:
        self._columns, self._asked = columns, asked
        self.rows: list[Row] = []
        self.skipped: list[Problem] = []
        self.problems: list[Problem] = []
        self.files: dict[str, str] = {}
        self.notes: list[Problem] = []
        self.code = 2

    def add(self, name: str, source: Source) -> None:
        if source.digest in self.files.values():
            self.notes.append(Problem("the same file a second time: its rows count again.", name, reason="file.twice"))
        self.files[name] = source.digest
        self.problems += source.problems
        records: list[tuple[Place, Mapping[str, object]]] = []
        malformed: list[tuple[MalformedRow, Place]] = []
        for place, value in source.records:
            try:
                records.append((place, renamed(value, self._columns)))
            except MalformedRow as error:
                malformed.append((error, place))
        absent = [
            key for key in self._columns if source.records and not any(key in value for _, value in source.records)
        ]
        if absent:
            hint = f"Seen: {', '.join(source.records[0][1])}."
            self.problems.append(Problem(f"no row has the key {', '.join(absent)} of data.columns.", name, hint))
        self.problems += self._not_there(name, [value for _, value in records])
        judge = partial(self._judged, all_text=source.all_text)
        first = _first_of_most([(place, judge(value)) for place, value in records])
        unread: dict[str, Mapping[str, object]] = {}
        scale, kind, form_of_kind = "", None, None
        ways: dict[bool, Place] = {}
        for place, value in records:
            try:
                judged = judge(value)
                form = _form(judged, first)
                row, more, used = form.read(judged, place, self._asked)
                if columns := self._asked.text_of(value):
                    row = replace(row, columns=columns)
                check(row)
                kind, form_of_kind = kind or type(row), form_of_kind or form
                if type(row) is not kind and not (form is form_of_kind and {kind, type(row)} == {Demo, Task}):
                    raise _other_kind(row, kind, value)
                ways.setdefault(isinstance(row.prompt, str), place)
                scale = scale or used
                self.rows.append(row if used in ("", scale) else _without_scores(row))
                for key in more if not self._asked.every else more.keys() - value.keys():
                    unread.setdefault(key, judged)
            except MalformedRow as error:
                malformed.append((error, place))
            except SkippedRow as error:
                self.skipped.append(Problem(error.message, str(place), reason=error.reason))
        self.problems += merge_malformed(malformed, lambda error: (DETAIL.sub("", error.message), error.reason))
        self._note(name, unread, ways)

    def _judged(self, value: Mapping[str, object], *, all_text: bool) -> Mapping[str, object]:
        """A record without the columns that functions alone read, which decide nothing of its form. all_text: it is of
        a table whose cells are text; functions get that text."""
        value = with_values(value) if all_text else value
        alone = self._asked.named - KNOWN - READ_TOO
        return {key: entry for key, entry in value.items() if key not in alone} if alone else value

    def _not_there(self, name: str, values: Sequence[Mapping[str, object]]) -> list[Problem]:
        """What is wrong where no row of a file has a column that a function needs."""
        absent = self._asked.absent(values) if values else []
        message = f"no row has the key {', '.join(absent)}, which a function of rewards takes."
        hint = f"Seen: {', '.join(values[0])}. What has a default may be missing." if absent else ""
        return [Problem(message, name, hint)] if absent else []

    def _note(self, name: str, unread: Mapping[str, Mapping[str, object]], ways: Mapping[bool, Place]) -> None:
        """Note what is odd about the whole file."""
        if unread:
            meant = {key: intended_key(key, value) if key in value else "" for key, value in unread.items()}
            answers = {key: f"{key} (read only where [rollout] draws responses)" for key in ANSWERS}
            answers = {} if self._asked.drawn else answers
            fields = ", ".join(
                f'{key} (did you mean "{other}"?)' if other else answers.get(key, key) for key, other in meant.items()
            )
            self.notes.append(Problem(f"fields that are not used: {fields}.", name, reason="fields.extra"))
        if len(ways) > 1:
            message = f"some rows (as line {ways[True].line}) are text that is continued as it stands, while others (as"
            message += f" line {ways[False].line}) are conversations, which go through the chat template."
            self.notes.append(Problem(message, name, reason="rows.mixed"))


def renamed(value: Mapping[str, object], columns: Mapping[str, str | None]) -> Mapping[str, object]:
    """The record with its keys renamed by data.columns; those renamed to nothing are left out.

    Null is absent here too. Raises MalformedRow where two values that are not null would have one name: which of them
    is meant must not depend on the order in which the keys stand in the file.
    """
    if not columns:
        return value
    record: dict[str, object] = {}
    source: dict[str, str] = {}
    for key, entry in value.items():
        name = columns.get(key) or key
        if key in columns and not columns[key]:
            continue
        if entry is not None and record.get(name) is not None:
            first, second = sorted((source[name], key), key=lambda other: other in columns)
            message = f'"{first}" and "{second}" would both be "{name}" by data.columns.'
            raise MalformedRow(message, f'Leave one of them out: {{"{first}" = ""}} in data.columns.', "key.twice")
        if name not in record or entry is not None:
            record[name], source[name] = entry, key
    return record


def _first_of_most(records: Sequence[tuple[Place, Mapping[str, object]]]) -> tuple[Format, Place] | None:
    """The format that most records have, and the place of the first of them."""
    fitted = [(form, place) for place, value in records if (form := fitting(value))]
    counts = Counter(form.name for form, _ in fitted)
    return max(fitted, key=lambda first: counts[first[0].name], default=None)


def _form(value: Mapping[str, object], first: tuple[Format, Place] | None) -> Format:
    """The format of a record, which is that of its file. Raises MalformedRow; SkippedRow where a key of it is null."""
    if first and (key := is_hole(value, first[0])):
        raise hole(key)
    form = detect_format(value)
    if first and form is not first[0]:
        if len(first[0].keys(value)) == len(first[0].slots):
            return first[0]
        message = f"has the form {form.name}, but most rows are {first[0].name}, such as line {first[1].line}."
        raise MalformedRow(message, "Keep one form a file.", "row.mixed")
    return form


def _other_kind(row: Row, kind: type, value: Mapping[str, object]) -> Exception:
    """The error of a row that is of another kind than the row before it, at times since it has null for a judgement."""
    if null := next((key for key, entry in value.items() if entry is None), ""):
        return hole(null)
    message = f"is a {KINDS[type(row)]}, but the rows before it are {KINDS[kind]}s."
    return MalformedRow(message, "Keep one form a file.", "row.mixed")


def _without_scores(row: Row) -> Row:
    """A row whose scores are on another scale than those of the rows before it."""
    return replace(row, score=None) if isinstance(row, Rating) else replace(row, scores=None)  # type: ignore[call-arg]

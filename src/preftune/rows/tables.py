"""Rows of .csv and .tsv files: every cell is the text that is written there, and an empty cell is absent.

No type is guessed from a column: "007", "1e5", "NA" and "True" are text, and what needs a number or a truth value reads
it from the text, as it does from JSON. Only a cell under a key that nothing reads is taken as the number or truth value
that it spells, since such a value may be a judgement, which is never left out in silence.
Held by tests/rows/test_tables.py.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from gzip import GzipFile
from typing import IO

from preftune.errors import UserError
from preftune.rows.columns import canonical
from preftune.rows.formats import KNOWN
from preftune.rows.json_text import MAX_LINE, Parsed, what_is_wrong
from preftune.rows.parse import excerpt
from preftune.rows.row import Place

DELIMITERS = {".csv": ",", ".tsv": "\t"}
OTHER_DELIMITERS = ";\t,|"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
INDEX = "index"  # the first column of a table that pandas has written has no name


def delimiter_of(name: str) -> str:
    """What separates the cells of a file of this name; empty where it is no such table."""
    return next((sign for end, sign in DELIMITERS.items() if name.lower().removesuffix(".gz").endswith(end)), "")


def table_records(stream: IO[bytes] | GzipFile, name: str, delimiter: str) -> Iterator[Parsed]:
    """The rows of a table whose first line names the columns. Raises UserError where the whole cannot be read."""
    limit = csv.field_size_limit(MAX_LINE)
    text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    lines = csv.reader(text, delimiter=delimiter, strict=True)
    number = 1
    try:
        names = _names(next(lines, []), name, delimiter)
        while (cells := next(lines, None)) is not None:
            number, first = lines.line_num, number + 1
            if cells:
                yield _record(cells, names, Place(name, first))
    except csv.Error as error:
        hint = 'A cell with a comma, a line break or a quote is quoted, and a quote inside of it is written twice: "".'
        raise UserError(f"is no table of cells: {error}.", location=f"{name}:{number + 1}", hint=hint) from error
    except UnicodeDecodeError as error:
        hint = "Save it as UTF-8, such as by iconv -f CP1252 -t UTF-8."
        raise UserError(f"is not UTF-8 text: {error.reason}.", location=name, hint=hint) from error
    finally:
        csv.field_size_limit(limit)
        text.detach()  # whoever opened the stream closes it


def _record(cells: Sequence[str], names: Sequence[str], place: Place) -> Parsed:
    if len(cells) != len(names):
        return place, None, f"has {len(cells)} cells, and there are {len(names)} columns."
    value = {name: cell or None for name, cell in zip(names, cells, strict=True)}
    return place, value, what_is_wrong(value, canonical(value))


def _names(header: Sequence[str], file: str, delimiter: str) -> list[str]:
    """The names of the columns. Raises UserError where a row could not be told by them."""
    names = [name.strip() for name in header]
    if names[:1] == [""] and len(names) > 1 and INDEX not in names:
        names[0] = INDEX
    if "" in names:
        raise UserError(f"column {names.index('') + 1} has no name.", location=f"{file}:1",
                        hint="The first line names the columns, such as prompt,chosen,rejected.")  # fmt: skip
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"two columns have the name {excerpt(twice)}.", location=f"{file}:1",
                        hint="Rename or drop one of them.")  # fmt: skip
    other = next((sign for sign in OTHER_DELIMITERS if len(names) == 1 and sign in names[0]), "")
    if other:
        raise UserError(f"its cells are separated by {other!r}.", location=f"{file}:1",
                        hint=f"Save it with {delimiter!r} between them.")  # fmt: skip
    return names


def with_values(value: Mapping[str, object]) -> dict[str, object]:
    """The record of a table with the numbers and truth values that cells spell under keys that nothing reads."""
    return {key: entry if key in KNOWN or not isinstance(entry, str) else _spelled(entry)
            for key, entry in value.items()}  # fmt: skip


def _spelled(cell: str) -> object:
    if cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    return float(cell) if NUMBER.fullmatch(cell) else cell

"""Strict JSON: lines or one array, each record with its place.

A key twice in one object, NaN, a broken character or a last line cut short is an error with its line, since the harm
of guessing would show only in the trained model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from gzip import GzipFile
from typing import IO, NoReturn

from preftune.errors import UserError
from preftune.rows.parse import MalformedRow
from preftune.rows.row import Place

MAX_LINE = 64 * 2**20  # bytes
DEPTH = 64  # objects and lists inside of each other
FORMS = "Rows are read from .jsonl, .json, .csv, .tsv and .parquet, all but the last also with .gz."
IN_LIST = "The number is the place in the list."
BOM = b"\xef\xbb\xbf"
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
GAP = re.compile(r"[\s,]*")
Parsed = tuple[Place, object, str]  # a record with its place, and what is wrong with it, or ""


def records(stream: IO[bytes] | GzipFile, name: str, head: bytes) -> Iterator[Parsed]:
    """Records of JSON text, of which `head` is the beginning. Raises UserError where the whole cannot be read."""
    lines = _lines(stream, name)
    if head.removeprefix(BOM).lstrip().startswith(b"["):
        yield from _array(b"".join(line for _, line in lines), name)
    else:
        yield from _objects(lines, name)


def _lines(stream: IO[bytes] | GzipFile, name: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, none of them longer than MAX_LINE."""
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise UserError(f"the line is longer than {MAX_LINE >> 20} MiB.", location=f"{name}:{number}")
        yield number, line.removeprefix(BOM) if number == 1 else line


def _objects(lines: Iterator[tuple[int, bytes]], name: str) -> Iterator[Parsed]:
    """One object a line. Raises UserError where the text looks like something else."""
    opened, first = 0, True  # opened: the last line that begins an object and does not end it
    for number, line in lines:
        if not line.strip():
            continue
        value, wrong = parse_line(line)
        if wrong and not line.endswith(b"\n") and number > 1 and line.lstrip().startswith(b"{"):
            wrong = "the file ends inside of this line: is the copy complete?"
        no_json = wrong.startswith("not JSON")
        opens = no_json and line.lstrip()[:1] in (b"{", b"[")
        if wrong and not opens and opened and opened == number - 1:
            hint = "Write one object a line: jq -c . file > file.jsonl."
            raise UserError("an object goes over several lines.", location=f"{name}:{opened}", hint=hint)
        if no_json and not opens and first:
            raise UserError("is not JSON: no object begins here.", location=f"{name}:{number}", hint=FORMS)
        opened, first = number if opens else opened, False
        yield Place(name, number), value, wrong


def _array(data: bytes, name: str) -> Iterator[Parsed]:
    """Elements of a JSON array, one by one, so that each problem has its place."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start + 1} is not UTF-8.", location=name, hint="Use iconv -t UTF-8.") from error
    position, number = _after_gap(text, text.index("[") + 1), 0
    while text[position : position + 1] != "]":
        if position >= len(text):
            raise UserError("the file ends inside of its list: is the copy complete?", location=name)
        number, start = number + 1, position
        try:
            value, position = STRICT.raw_decode(text, start)
            wrong = what_is_wrong(value, text[start:position])
        except json.JSONDecodeError as error:
            raise UserError(f"not JSON: {error.msg}.", location=f"{name}:{error.lineno}") from error
        except (MalformedRow, ValueError, RecursionError) as error:
            raise UserError(_message(error), location=f"{name}:{number}", hint=IN_LIST) from error
        yield Place(name, number), value, wrong
        position = _after_gap(text, position)
    if text[position + 1 :].strip():
        raise UserError("something follows after the list.", location=name)


def _after_gap(text: str, position: int) -> int:
    gap = GAP.match(text, position)
    return gap.end() if gap else position


def parse_line(line: bytes) -> tuple[object, str]:
    """(value, "") or (None, what is wrong) of one line."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return None, f"byte {error.start + 1} of the line is not UTF-8. Convert the file: iconv -f LATIN1 -t UTF-8."
    try:
        value = STRICT.decode(text)
    except json.JSONDecodeError as error:
        hint = ' Texts and keys need double quotes (").' if text.lstrip()[:2] in ("{'", "['") else ""
        return None, f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}.{hint}"
    except (MalformedRow, ValueError, RecursionError) as error:
        return None, _message(error)
    return value, what_is_wrong(value, text)


def _message(error: Exception) -> str:
    if isinstance(error, MalformedRow):
        return error.message
    return "nested too deeply." if isinstance(error, RecursionError) else "a number has too many digits."


def what_is_wrong(value: object, text: str) -> str:
    """What a JSON parser still accepts: half a surrogate pair, and depth; "" where nothing is wrong.

    text: the value as JSON; it shows quickly that neither can be there.
    """
    if SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            return "a text holds half of a surrogate pair, which is no character."
    depth, layer = 0, [value]
    while text.count("{") + text.count("[") > DEPTH and layer:
        depth += 1
        if depth > DEPTH:
            return f"nested more than {DEPTH} deep."
        layer = [inner for outer in layer for inner in _inside(outer)]
    return ""


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise MalformedRow(f'the key "{twice}" stands twice in one object.')
    return value


def _refuse_constant(word: str) -> NoReturn:
    raise MalformedRow(f"{word} is not a number in JSON.")


STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)

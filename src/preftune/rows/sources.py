"""From a name to raw records: JSON objects with their places. Knows files, nothing of preferences.

JSON lines, a JSON array, Parquet, the first two also gzipped, or the name of a dataset on the hub. A file is read
strictly: a key twice in one object, NaN, a broken character or a last line cut short is an error with its line,
since what follows from guessing is seen only in the trained model.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, NoReturn

from msgspec import Struct

from preftune.errors import IO as IO_CODE
from preftune.errors import Problem, UserError, nearest, third_party_message
from preftune.files import digest
from preftune.rows.parse import MalformedRow, describe
from preftune.rows.row import Place

LINE = 64 * 2**20  # bytes of one line, or of a gzipped file before its ratio counts
RATIO = 200  # unpacked bytes for a packed one; text comes nowhere near
PLACE = "The number is the place in the list."
DEPTH = 64  # objects and lists inside of each other
FORMS = "Rows are read from .jsonl, .json and .parquet, the first two also with .gz."
HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.]+)?")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
STRANGE: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself.", "Run `git lfs pull`."),
    (b"<!DOCTYPE", "is an HTML page.", "The download failed; fetch the raw file."),
    (b"<!doctype", "is an HTML page.", "The download failed; fetch the raw file."),
    (b"<html", "is an HTML page.", "The download failed; fetch the raw file."),
    (b"\xff\xfe", "looks like UTF-16.", "Convert it: iconv -f UTF-16 -t UTF-8."),
    (b"\xfe\xff", "looks like UTF-16.", "Convert it: iconv -f UTF-16 -t UTF-8."),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd.", "Unpack it: zstd -d."),
    (b"PK\x03\x04", "is a zip archive.", "Unpack it first."),
)


class Source(Struct, frozen=True):
    """What a name led to. digest: SHA-256 of the file's bytes, or of the records of a hub dataset."""

    digest: str
    records: list[tuple[Place, dict[str, object]]]
    problems: list[Problem]


def load(name: str, limit: int | None = None) -> Source:
    """The first `limit` records of a file or hub dataset; defects of single lines are gathered in `problems`.

    Raises UserError where the file as a whole cannot be read.
    """
    path = Path(name).expanduser()
    if HUB.fullmatch(name) and not path.suffix and not path.exists() and not path.parent.exists():
        found = _gather(_hub(name), limit)
        shown = json.dumps([value for _, value in found.records], sort_keys=True, default=str)
        return Source(hashlib.sha256(shown.encode()).hexdigest(), found.records, found.problems)
    before = _regular(path, name)
    try:
        head = _head(path, name)
        found = _gather(_parquet(path, name) if head.startswith(b"PAR1") else _text(path, name, head), limit)
        sha, after = digest(path), path.stat()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError("the gzip file is cut short or damaged.", location=name, hint="Copy it again.") from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}.", location=name, code=IO_CODE) from error
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise UserError("changed while it was read.", location=name, hint="Wait until it is written.")
    if not found.records and not found.problems and limit != 0:
        raise UserError("holds no rows.", location=name)
    return Source(sha, found.records, found.problems)


def _regular(path: Path, name: str) -> os.stat_result:
    try:
        found = path.stat()
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        several = f"Several files are a list: data.train='{json.dumps(name.split(','))}'." if "," in name else ""
        raise UserError("there is no such file.", location=name, hint=several or nearest(path.name, near)) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}.", location=name, code=IO_CODE) from error
    if stat.S_ISDIR(found.st_mode):
        inside = ", ".join(sorted(p.name for p in path.iterdir())[:5])
        raise UserError("is a folder.", location=name, hint=f"Name the files: {inside}." if inside else "It is empty.")
    if not stat.S_ISREG(found.st_mode):
        raise UserError("is not an ordinary file.", location=name)
    if not found.st_size:
        raise UserError("is empty.", location=name)
    return found


def _head(path: Path, name: str) -> bytes:
    """The first bytes, unpacked. Raises UserError for what is plainly no data."""
    with path.open("rb") as packed:
        gzipped = packed.read(2) == b"\x1f\x8b"
    with gzip.open(path) if gzipped else path.open("rb") as stream:
        head = stream.read(4096)
        most, unpacked = max(LINE, RATIO * path.stat().st_size), 0
        while gzipped and (block := stream.read(2**20)):
            unpacked += len(block)
            if unpacked > most:
                raise UserError(f"unpacks to more than {RATIO} times its size, as no text does.", location=name)
    for start, message, hint in STRANGE:
        if head.lstrip().startswith(start):
            raise UserError(message, location=name, hint=hint)
    if b"\0" in head[:200] and not head.startswith(b"PAR1"):
        raise UserError("is not text: it has zero bytes; UTF-16 looks like this.", location=name, hint=FORMS)
    if path.name.removesuffix(".gz").endswith((".csv", ".tsv", ".txt", ".arrow", ".pkl", ".xlsx")):
        raise UserError("is in a form that is not read.", location=name, hint=FORMS)
    return head


def _gather(values: Iterable[tuple[Place, object, str]], limit: int | None) -> Source:
    records: list[tuple[Place, dict[str, object]]] = []
    problems: list[Problem] = []
    for place, value, wrong in islice(values, limit):
        if not wrong and not isinstance(value, dict):
            wrong = f"is {describe(value)}, not an object with keys."
        if wrong or not isinstance(value, dict):
            problems.append(Problem(wrong, str(place), reason="row.json"))
        else:
            records.append((place, value))
    return Source("", records, problems)


def _text(path: Path, name: str, head: bytes) -> Iterator[tuple[Place, object, str]]:
    """Records of JSON text: (place, value, what is wrong or "")."""
    with path.open("rb") as packed:
        gzipped = packed.read(2) == b"\x1f\x8b"
        packed.seek(0)
        unpacked: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=packed) if gzipped else packed
        with unpacked as stream:
            lines = _lines(stream, name)
            if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                yield from _array(b"".join(line for _, line in lines), name)
            else:
                yield from _jsonl(lines, name)


def _lines(stream: IO[bytes] | gzip.GzipFile, name: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, none of them longer than LINE."""
    number = 0
    while line := stream.readline(LINE + 1):
        number += 1
        if len(line) > LINE:
            raise UserError(f"the line is longer than {LINE >> 20} MiB.", location=f"{name}:{number}")
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _jsonl(lines: Iterator[tuple[int, bytes]], name: str) -> Iterator[tuple[Place, object, str]]:
    opened, first = 0, True  # opened: the last line that begins an object and does not end it
    for number, line in lines:
        if not line.strip():
            continue
        value, wrong = parse(line)
        if wrong and not line.endswith(b"\n") and number > 1 and line.lstrip().startswith(b"{"):
            wrong = "the file ends inside of this line: is the copy complete?"
        strange = wrong.startswith("not JSON")
        opens = strange and line.lstrip()[:1] in (b"{", b"[")
        if wrong and not opens and opened and opened == number - 1:
            raise UserError("an object goes over several lines.", location=f"{name}:{opened}",
                            hint="One object a line is needed: jq -c . file > file.jsonl.")  # fmt: skip
        if strange and not opens and first:
            raise UserError("is not JSON: no object begins here.", location=f"{name}:{number}", hint=FORMS)
        opened, first = number if opens else opened, False
        yield Place(name, number), value, wrong


def _array(data: bytes, name: str) -> Iterator[tuple[Place, object, str]]:
    """Elements of a JSON array, one by one, so that each complaint has its place."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start + 1} is not UTF-8.", location=name, hint="Use iconv -t UTF-8.") from error
    decoder, gap = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_constant), re.compile(r"[\s,]*")
    end, number = text.index("[") + 1, 0
    while True:
        end = _after(gap, text, end)
        if end >= len(text):
            raise UserError("the file ends inside of its list: is the copy complete?", location=name)
        if text[end] == "]":
            break
        number, start, value, wrong = number + 1, end, None, ""
        try:
            value, end = decoder.raw_decode(text, end)
            wrong = _held(value, text[start:end])
        except json.JSONDecodeError as error:
            raise UserError(f"not JSON: {error.msg}.", location=f"{name}:{error.lineno}") from error
        except (MalformedRow, ValueError, RecursionError) as error:
            raise UserError(_refused(error), location=f"{name}:{number}", hint=PLACE) from error
        yield Place(name, number), value, wrong
    if text[end + 1 :].strip():
        raise UserError("something follows after the list.", location=name)


def _after(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.match(text, start)
    return found.end() if found else start


def parse(line: bytes) -> tuple[object, str]:
    """(value, "") or (None, what is wrong) of one line of strict JSON."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return None, f"byte {error.start + 1} of the line is not UTF-8. Convert the file: iconv -f LATIN1 -t UTF-8."
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_constant)
    except json.JSONDecodeError as error:
        hint = ' Texts and keys need double quotes (").' if text.lstrip()[:2] in ("{'", "['") else ""
        return None, f"not JSON: {error.msg} at character {error.pos + 1}.{hint}"
    except (MalformedRow, ValueError, RecursionError) as error:
        return None, _refused(error)
    return value, _held(value, text)


def _refused(error: Exception) -> str:
    if isinstance(error, MalformedRow):
        return error.message
    return "nested too deeply." if isinstance(error, RecursionError) else "a number has too many digits."


def _held(value: object, text: str) -> str:
    """What strict JSON still lets through: half a surrogate pair, and depth. Looked for only where it can be."""
    if SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "a text holds half of a surrogate pair, which is no character."
    level, layer = 0, [value]
    while text.count("{") + text.count("[") > DEPTH and layer:
        level += 1
        if level > DEPTH:
            return f"nested more than {DEPTH} deep."
        layer = [inner for one in layer for inner in _inside(one)]
    return ""


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise MalformedRow(
            f'the key "{next(key for key in names if names.count(key) > 1)}" stands twice in one object.'
        )
    return found


def _constant(word: str) -> NoReturn:
    raise MalformedRow(f"{word} is not a number in JSON.")


def _parquet(path: Path, name: str) -> Iterator[tuple[Place, object, str]]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield Place(name, number), value, ""
    except ArrowException as error:
        raise UserError(f"not readable as Parquet: {third_party_message(error)}", location=name) from error


def _hub(name: str) -> Iterator[tuple[Place, object, str]]:
    repository, _, split = name.partition(":")
    load_dataset: Callable[..., Iterable[object]]
    from datasets import load_dataset

    try:
        table = load_dataset(repository, split=split or "train")
    except Exception as error:  # its own classes, those of the hub's client and of the network
        raise UserError(f"neither a file nor a dataset that the hub gives: {third_party_message(error)}", location=name, code=IO_CODE,
                        hint="Check the name and the network, or download the file.") from error  # fmt: skip
    for number, value in enumerate(table, 1):
        yield Place(name, number), value, ""

"""Raw records with their places, from a file, a dataset on the hub, or Python values; nothing here knows preferences.

A file holds JSON lines, a JSON array, a table of cells (all also gzipped), or Parquet; `json_text.py` and `tables.py`
say how strictly text is read.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import re
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from msgspec import Struct

from preftune.errors import IO as IO_CODE
from preftune.errors import Problem, UserError, nearest, third_party_message
from preftune.files import digest
from preftune.rows.columns import arrow_records, canonical, plain
from preftune.rows.json_text import FORMS, MAX_LINE, Parsed, records, what_is_wrong
from preftune.rows.parse import describe
from preftune.rows.row import Place
from preftune.rows.tables import delimiter_of, table_records

MAX_RATIO = 200  # unpacked bytes for a packed one, in files of more than MAX_LINE; text comes nowhere near
HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.]+)?")
HTML = ("is an HTML page.", "The download failed; fetch the raw file.")
UTF16 = ("looks like UTF-16.", "Convert it: iconv -f UTF-16 -t UTF-8.")
OF_TXT = (
    "Write rows with the key text: jq -Rc '{text: .}' FILE > rows.jsonl for one a line, jq -Rsc for one of the whole."
)
NOT_ROWS: dict[bytes, tuple[str, str]] = {
    b"version https://git-lfs": ("is a Git LFS pointer, not the file itself.", "Run `git lfs pull`."),
    b"<!DOCTYPE": HTML,
    b"<!doctype": HTML,
    b"<html": HTML,
    b"\xff\xfe": UTF16,
    b"\xfe\xff": UTF16,
    b"\x28\xb5\x2f\xfd": ("is packed with zstd.", "Unpack it: zstd -d."),
    b"PK\x03\x04": ("is a zip archive.", "Unpack it first."),
}


class Source(Struct, frozen=True):
    """Raw records. digest: SHA-256 of the file's bytes, or of the records where there is no file; all_text: whether
    numbers are texts too, as in a table of cells."""

    digest: str
    records: list[tuple[Place, dict[str, object]]]
    problems: list[Problem]
    all_text: bool = False


def files_of(name: str) -> list[str]:
    """The files that a pattern such as `rows/*.jsonl` fits, in the order of their names; the name itself where it is no
    pattern, or where a file is called so. Raises UserError where no file fits."""
    path = Path(name).expanduser()
    if not glob.has_magic(name) or path.exists():
        return [name]
    fitting = glob.glob(str(path), recursive=True)  # noqa: PTH207  that of Path takes hidden files too
    if files := sorted(file for file in fitting if Path(file).is_file()):
        return files
    hint = nearest(path.name, sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
    raise UserError("no file fits this pattern.", location=name, hint=hint)


def on_hub(name: str) -> bool:
    """Whether it is the name of a hub dataset, and none of a file."""
    path = Path(name).expanduser()
    return bool(HUB.fullmatch(name)) and not path.suffix and not path.exists() and not path.parent.exists()


def load(name: str) -> Source:
    """The records of a file or hub dataset; what is wrong with single lines is listed in `problems`.

    Raises UserError where the file as a whole cannot be read.
    """
    path = Path(name).expanduser()
    if on_hub(name):
        values, problems = _gather(_hub(name))
        text = json.dumps([value for _, value in values], sort_keys=True, default=str)
        return Source(hashlib.sha256(text.encode()).hexdigest(), values, problems)
    try:
        before = ordinary_file(name)
        head = _head(path, name)
        values, problems = _gather(_parquet(path, name) if head.startswith(b"PAR1") else _text(path, name, head))
        sha, after = digest(path), path.stat()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError("the gzip file is cut short or damaged.", location=name, hint="Copy it again.") from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}.", location=name, code=IO_CODE) from error
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise UserError("changed while it was read.", location=name, hint="Wait until it is written.")
    if not values and not problems:
        raise UserError("holds no rows.", location=name)
    return Source(sha, values, problems, all_text=bool(delimiter_of(name)))


def _gather(parsed: Iterable[Parsed]) -> tuple[list[tuple[Place, dict[str, object]]], list[Problem]]:
    """The records that are objects, and one problem for each that is none."""
    values: list[tuple[Place, dict[str, object]]] = []
    problems: list[Problem] = []
    for place, value, wrong in parsed:
        if not wrong and isinstance(value, dict):
            values.append((place, value))
        else:
            message = wrong or f"is {describe(value)}, not an object with keys."
            problems.append(Problem(message, str(place), reason="row.json"))
    return values, problems


def ordinary_file(name: str) -> os.stat_result:
    """The state of a file that may hold rows. Raises UserError where there is none, OSError where it cannot be seen."""
    path = Path(name).expanduser()
    try:
        status = path.stat()
    except FileNotFoundError:
        if "," in name:
            hint = f"Several files are a list: data.train='{json.dumps(name.split(','))}'."
        elif name.endswith("rows given in Python)"):
            hint = "They were given in Python: give them there again, as train(run, resume=True)."
        else:
            hint = nearest(path.name, sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else [])
        raise UserError("there is no such file.", location=name, hint=hint) from None
    if stat.S_ISDIR(status.st_mode):
        inside = sorted(p for p in path.iterdir() if p.is_file())
        pattern = Path(name) / f"*{inside[0].suffix}" if inside else ""
        hint = f"Name the files, or a pattern that they fit: {pattern}." if inside else "It holds no file."
        raise UserError("is a folder.", location=name, hint=hint)
    if not stat.S_ISREG(status.st_mode):
        raise UserError("is not an ordinary file.", location=name)
    if not status.st_size:
        raise UserError("is empty.", location=name)
    return status


def _head(path: Path, name: str) -> bytes:
    """The first bytes, unpacked. Raises UserError for what is plainly no rows."""
    with _unpacked(path) as stream:
        head = stream.read(4096)
        limit, unpacked = max(MAX_LINE, MAX_RATIO * path.stat().st_size), 0
        while isinstance(stream, gzip.GzipFile) and (block := stream.read(2**20)):
            unpacked += len(block)
            if unpacked > limit:
                raise UserError(f"unpacks to more than {MAX_RATIO} times its size, as no text does.", location=name)
    for start, (message, hint) in NOT_ROWS.items():
        if head.lstrip().startswith(start):
            raise UserError(message, location=name, hint=hint)
    if b"\0" in head[:200] and not head.startswith(b"PAR1"):
        raise UserError("is not text: it has zero bytes; UTF-16 looks like this.", location=name, hint=FORMS)
    if path.name.removesuffix(".gz").endswith(".txt"):
        raise UserError("does not say whether a line or the whole file is a text.", location=name, hint=OF_TXT)
    if path.name.removesuffix(".gz").endswith((".arrow", ".pkl", ".xlsx")):
        raise UserError("is in a form that is not read.", location=name, hint=FORMS)
    return head


def _unpacked(path: Path) -> IO[bytes] | gzip.GzipFile:
    with path.open("rb") as packed:
        gzipped = packed.read(2) == b"\x1f\x8b"
    return gzip.open(path) if gzipped else path.open("rb")


def _text(path: Path, name: str, head: bytes) -> Iterator[Parsed]:
    with _unpacked(path) as stream:
        if delimiter := delimiter_of(name):
            yield from table_records(stream, name, delimiter)
        else:
            yield from records(stream, name, head)


def _parquet(path: Path, name: str) -> Iterator[Parsed]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as table:
            batches = table.iter_batches(batch_size=1024)
            yield from arrow_records(batches, table.schema_arrow, name)
    except ArrowException as error:
        raise UserError(f"not readable as Parquet: {third_party_message(error)}", location=name) from error


def _hub(name: str) -> Iterator[Parsed]:
    repository, _, split = name.partition(":")
    load_dataset: Callable[..., Any]
    from datasets import load_dataset

    try:
        table = load_dataset(repository, split=split or "train", trust_remote_code=False)
    except Exception as error:  # its own classes, those of the hub's client and of the network
        message = f"neither a file nor a dataset that the hub gives: {third_party_message(error)}"
        hint = "Check the name and the network, or download the file."
        raise UserError(message, location=name, code=IO_CODE, hint=hint) from error
    yield from _dataset(table, name)


def _dataset(table: Any, name: str) -> Iterator[Parsed]:
    """The rows of a dataset, those of its columns that its format shows. Raises UserError where a function makes them
    anew each time they are looked at: it works on what its author expects, and reading by the schema passes it by.
    """
    format_ = table.format
    if format_["type"] == "custom":
        hint = "Give dataset.map(function, batched=True) in place of dataset.with_transform(function)."
        raise UserError("is a dataset with a transform, which is not applied here.", location=name, hint=hint)
    shown = table.with_format("arrow", columns=None if format_["output_all_columns"] else format_["columns"])
    return arrow_records(shown.iter(1024), table.features.arrow_schema, name)


def _streamed(table: Any, name: str) -> Iterator[Parsed]:
    """The rows of an iterable dataset, by its features where it has them (its `map` leaves none)."""
    if table.features is None:
        return _mappings(table.with_format(None), name)
    return arrow_records(table.with_format("arrow").iter(1024), table.features.arrow_schema, name)


def from_objects(rows: Iterable[object], name: str) -> Source:
    """Python mappings as records, gone through once; their digest is that of the same rows as canonical JSON lines.

    Raises UserError where they are not an iterable of mappings.
    """
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        hint = "Give a list of dicts, or one split of a dataset."
        raise UserError(f"is {describe(rows)}, needs an iterable of mappings.", location=name, hint=hint)
    datasets, table = sys.modules.get("datasets"), cast(Any, rows)
    if datasets is not None and isinstance(table, datasets.Dataset):
        parsed = _dataset(table, name)
    elif datasets is not None and isinstance(table, datasets.IterableDataset):
        parsed = _streamed(table, name)
    else:
        parsed = _mappings(rows, name)
    values, problems = _gather(parsed)
    if not values and not problems:
        raise UserError("there are no rows.", location=name)
    lines = "".join(f"{canonical(value)}\n" for _, value in values)
    return Source(hashlib.sha256(lines.encode()).hexdigest(), values, problems)


def _mappings(rows: Iterable[object], name: str) -> Iterator[Parsed]:
    for number, row in enumerate(rows, 1):
        place = Place(name, number)
        if not isinstance(row, Mapping):
            hint = 'A pair is {"prompt": ..., "chosen": ..., "rejected": ...}.'
            hint += ' Rows of a table of pandas are table.to_dict("records").' if isinstance(row, str) else ""
            message = f"is {describe(row)}, needs a mapping from keys to values."
            raise UserError(message, location=str(place), hint=hint)
        try:
            value = plain(row)
            yield place, value, what_is_wrong(value, canonical(value))
        except RecursionError:
            yield place, None, "nested too deeply."
        except ValueError as error:
            yield place, None, f"{error}."

"""A file that a command writes: it replaces no input, and nothing but an earlier file of its own kind.

Held by tests/record/test_output.py and tests/cli/test_out.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from preftune import files
from preftune.errors import UserError

HEAD = 2**24  # bytes of a file that are looked at: more than the longest line of responses, or the head of a page
GENERATOR = 'name="generator" content="preftune"'  # stands in the head of every page


class Kind(NamedTuple):
    """verb: what writes files of this kind; recognizes: whether the beginning of a file is that of one."""

    verb: str
    recognizes: Callable[[bytes], bool]


def assert_replaceable(out: Path, kind: Kind, inputs: Iterable[Path] = (), flag: str = "--out") -> None:
    """Raise UserError where a file of this kind would replace an input, stand in the folder of one such as a model, or
    replace a file that is not of its kind. An empty file is replaced."""
    location, hint = f"{flag} {out}", "Name another file."
    if out.is_dir():
        raise UserError("this is a folder.", location=location, hint="Name a file.")
    if source := next((path for path in inputs if files.lies_in(out, path)), None):
        where = "is an input of this command" if source.resolve() == out.resolve() else f"lies in {source}, an input"
        raise UserError(f"this {where}.", location=location, hint=hint)
    if out.exists() and not out.is_file():
        raise UserError("this is not an ordinary file.", location=location, hint=hint)
    if not out.exists() or not out.stat().st_size:
        return
    with files.reported(out, "read"), out.open("rb") as stream:
        head = stream.read(HEAD)
    if not kind.recognizes(head):
        raise UserError(f"this file is there already, and preftune {kind.verb} has not written it.", location=location,
                        hint="Name another file, or move it away.")  # fmt: skip


def _object(text: bytes) -> Mapping[str, object]:
    """A JSON object; an empty one where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _lists_responses(row: Mapping[str, object], *names: str) -> bool:
    """Whether the first response in a row, of those that stand by themselves or in a list, has these numbers."""
    sides = row.get("responses", [row.get("chosen"), row.get("response")])
    first = next((side for side in sides if isinstance(side, dict)), {}) if isinstance(sides, list) else {}
    return all(name in first for name in names)


def _is_scores(head: bytes) -> bool:
    row = _object(head.partition(b"\n")[0])
    numbers = [_lists_responses(row, "tokens", number) for number in ("logp", "score")]
    return {"id", "place"} <= row.keys() and any(numbers)


def _is_draws(head: bytes) -> bool:
    row = _object(head.partition(b"\n")[0])
    return row.keys() == {"id", "prompt", "responses"} and _lists_responses(row, "text", "logp", "tokens", "ended")


def _is_page(head: bytes) -> bool:
    return GENERATOR.encode() in head or b"preftune report</title>" in head  # the latter in those of earlier versions


SCORES, DRAWS = Kind("score", _is_scores), Kind("draw", _is_draws)
PAGE, STUDY = Kind("report", _is_page), Kind("trade-off", _is_page)
FIGURES = Kind("trade-off", lambda head: {"beta", "ceiling", "frontier"} <= _object(head).keys())

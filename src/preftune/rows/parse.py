"""Typed access to the values of a raw record, and the two ways in which a row can be wrong.

- A `MalformedRow` has wrong keys or types: a key is missing, a number stands where text belongs, a role is unknown.
  The file is not what it was taken for, so its author has to mend it: all such rows are listed and nothing is read.
- A `SkippedRow` has the right shape but teaches nothing: a response is empty, both responses are equal, the two sides
  answer different prompts, a value is null. It is left out and counted under its reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NoReturn

YES = frozenset({"true", "yes", "1", "good", "up", "thumbs_up", "like", "positive", "chosen", "desirable"})
NO = frozenset({"false", "no", "0", "bad", "down", "thumbs_down", "dislike", "negative", "rejected", "undesirable"})


class MalformedRow(Exception):
    """A row whose keys or types are wrong."""

    def __init__(self, message: str, hint: str = "", reason: str = "row.type") -> None:
        super().__init__(message)
        self.message, self.hint, self.reason = message, hint, reason


class SkippedRow(Exception):
    """A row of the right shape that nothing can be learned from."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


def excerpt(value: object) -> str:
    """The value in at most 60 characters; everything that a terminal might obey is escaped."""
    shown = repr(value[:80]) if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def describe(value: object) -> str:
    """What a JSON value is, in words: `a number (7)`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a truth value ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"a number ({excerpt(value)})"
    if isinstance(value, str):
        return f"the text {excerpt(value)}" if value else "an empty text"
    if isinstance(value, bytes):
        return f"{len(value)} bytes that are no text"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__


def refuse_other(value: object) -> NoReturn:
    """For `default` of json.dumps: raise MalformedRow for what JSON cannot hold, such as bytes or a picture."""
    raise MalformedRow(f"{describe(value)} cannot be written as text.", "Leave it out, or make it text or a number.")


def parse_text(value: object, field: str) -> str:
    """A text. Raises MalformedRow."""
    if not isinstance(value, str):
        raise MalformedRow(f'"{field}" is {describe(value)}, needs text.', "Quote it, or drop the row.")
    return value


def parse_number(value: object, field: str) -> float:
    """A finite number; a text that spells one is accepted too. Raises MalformedRow."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise MalformedRow(f'"{field}" is {describe(value)}, needs a finite number.')
    return number


def parse_count(value: object, field: str) -> float:
    """A number that is not negative, such as votes. Raises MalformedRow."""
    number = parse_number(value, field)
    if number < 0:
        raise MalformedRow(f'"{field}" is {number:g}, needs 0 or more.')
    return number


def parse_label(value: object, field: str) -> bool:
    """Good or bad, from true/false, 1/0, "yes"/"no". Raises MalformedRow."""
    word = str(value).strip().lower().removesuffix(".0") if isinstance(value, bool | int | str) else ""
    if isinstance(value, float) and value in (0.0, 1.0):
        word = str(int(value))
    if word not in YES | NO:
        hint = "1, 0, yes and no are understood too."
        raise MalformedRow(f'"{field}" is {describe(value)}, needs true or false.', hint)
    return word in YES


def parse_list(value: object, field: str) -> list[object]:
    """A list with at least one element. Raises MalformedRow, SkippedRow where it is empty."""
    if not isinstance(value, list):
        raise MalformedRow(f'"{field}" is {describe(value)}, needs a list.')
    if not value:
        raise hole(field, "an empty list")
    return value


def hole(field: str, value: str = "null") -> SkippedRow:
    """The error of a row in which something that it needs is missing: such a row alone is of no use."""
    return SkippedRow("row.hole", f'"{field}" is {value}.')


def first_of(value: Mapping[str, object], keys: tuple[str, ...], field: str) -> object:
    """The value of the first of `keys` that is there and not null. Raises MalformedRow, SkippedRow where it is null."""
    for key in keys:
        if value.get(key) is not None:
            return value[key]
    if any(key in value for key in keys):
        raise hole(f"{field}.{keys[0]}")
    raise MalformedRow(f"{field}.{keys[0]} is missing.", f"Seen: {', '.join(value) or 'no key'}.")

"""Typed access to the fields of one raw record, and the two ways in which a row can be wrong.

- A `Defect` lies in the keys and types: a key is missing, a number stands where text belongs, a role is unknown.
  The file is not what it was taken for, so its writer has to mend it: all defects are listed, nothing is read.
- An `Unusable` row has the right shape, but what it says teaches nothing: a response is empty, both are equal,
  the two sides answer different prompts, turns are out of order. It is left out and counted under its reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from preftune.errors import nearest
from preftune.rows.row import ROLES, Message, Prompt

SPOKEN = {"human": "user", "prompter": "user", "gpt": "assistant", "model": "assistant", "observation": "tool"}
YES, NO = {"true", "yes", "1"}, {"false", "no", "0"}


class MalformedRow(Exception):
    """A row whose keys or types are wrong."""

    def __init__(self, message: str, hint: str = "", reason: str = "row.type") -> None:
        super().__init__(message)
        self.message, self.hint, self.reason = message, hint, reason


class SkippedRow(Exception):
    """A row of the right shape that cannot be learnt from."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


def excerpt(value: object) -> str:
    """The value in at most 60 characters, everything that a terminal might obey escaped."""
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
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__


def text(value: object, field: str) -> str:
    """A text. Raises Defect."""
    if not isinstance(value, str):
        raise MalformedRow(f'"{field}" is {describe(value)}, needs text.', "Quote it, or drop the row.")
    return value


def number(value: object, field: str) -> float:
    """A finite number; a text that spells one is taken too. Raises Defect."""
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise MalformedRow(f'"{field}" is {describe(value)}, needs a finite number.')
    return found


def count(value: object, field: str) -> float:
    """A number that is not negative, such as votes. Raises Defect."""
    found = number(value, field)
    if found < 0:
        raise MalformedRow(f'"{field}" is {found:g}, needs 0 or more.')
    return found


def label(value: object, field: str) -> bool:
    """Good or bad, from true/false, 1/0, "yes"/"no". Raises Defect."""
    word = str(value).strip().lower() if isinstance(value, bool | int | str) else ""
    if isinstance(value, float) and value in (0.0, 1.0):
        word = str(int(value))
    if word not in YES | NO:
        raise MalformedRow(
            f'"{field}" is {describe(value)}, needs true or false.', "1, 0, yes and no are understood too."
        )
    return word in YES


def items(value: object, field: str) -> list[object]:
    """A list with at least one element. Raises Defect."""
    if not isinstance(value, list) or not value:
        raise MalformedRow(f'"{field}" is {"an empty list" if value == [] else describe(value)}, needs a list.')
    return value


def turns(value: object, field: str) -> Prompt:
    """Text as it stands, or a conversation from a list of messages, one message, or an object that holds them."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        if "messages" in value:
            refuse(value, ("tools",), f"{field}.")
            return turns(value["messages"], f"{field}.messages")
        return (_message(value, field),)
    if not isinstance(value, list):
        raise MalformedRow(
            f'"{field}" is {describe(value)}, needs text or a list of messages.', "Quote it, or drop the row."
        )
    if not value:
        raise MalformedRow(f'"{field}" is an empty list, needs at least one message.')
    return tuple(_message(turn, f"{field}[{place}]") for place, turn in enumerate(value))


def refuse(value: Mapping[str, object], keys: tuple[str, ...], prefix: str = "") -> None:
    """Raise Defect where one of `keys` holds something: to ignore it would change what the row means."""
    for key in keys:
        if value.get(key):
            raise MalformedRow(
                f'"{prefix}{key}" is not supported.', "Leave such rows out, or write them into the turns."
            )


def _message(value: object, field: str) -> Message:
    if not isinstance(value, dict):
        raise MalformedRow(f"{field} is {describe(value)}, needs a message with a role and its content.")
    role = _one_of(value, ("role", "from"), field)
    if not isinstance(role, str) or SPOKEN.get(role, role) not in ROLES:
        hint = nearest(str(role), [*ROLES, *SPOKEN])
        raise MalformedRow(
            f"{field}.role is {describe(role)}, no role known here.", hint or f"Known: {', '.join(ROLES)}."
        )
    refuse(value, ("tool_calls", "images", "function_call"), f"{field}.")
    content = _one_of(value, ("content", "value"), field)
    if isinstance(content, list):
        content = "".join(_part(part, f"{field}.content[{place}]") for place, part in enumerate(content))
    return Message(SPOKEN.get(role, role), text(content, f"{field}.content"))


def _part(value: object, field: str) -> str:
    if isinstance(value, dict) and value.get("type") == "text":
        return text(value.get("text"), f"{field}.text")
    kind = value.get("type") if isinstance(value, dict) else describe(value)
    raise MalformedRow(f"{field} is {kind}; images and other parts are not supported, only text.")


def _one_of(value: Mapping[str, object], keys: tuple[str, ...], field: str) -> object:
    for key in keys:
        if key in value:
            return value[key]
    raise MalformedRow(f"{field}.{keys[0]} is missing.", f"Seen: {', '.join(map(str, value)) or 'no key'}.")

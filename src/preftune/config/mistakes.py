"""What is wrong with a tree of keys, said with the key, its place and the nearest right one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from preftune.config.explain import choices, keys, names_at, values_at
from preftune.errors import Problem, UserError, nearest

FEW = 3  # at most so many keys or choices are named in a hint
UNKNOWN_KEY = "key.unknown"
PLAIN = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}
TYPES = re.compile(r"`([a-z |]+)`")


def located(file: str, place: str) -> str:
    """Where something is wrong: `run.toml: optim.lr`."""
    return ": ".join(filter(None, (file, place)))


def explained(message: str, tree: Mapping[str, Any], file: str) -> UserError:
    """The error for a message of msgspec about this tree."""
    message, _, place = message.partition(" - at `")
    place = place.rstrip("`").removeprefix("$").removeprefix(".")
    hint = reason = ""
    if unknown := re.search(r"unknown field `(.*?)`", message):
        message, reason = "there is no such key.", UNKNOWN_KEY
        hint = _right_key(unknown[1], place, tree)
        place = f"{place}.{unknown[1]}".lstrip(".")
    elif invalid := re.search(r"Invalid (?:enum )?value '(.*?)'", message):
        message = f'"{invalid[1]}" is not one of them.'
        hint = _right_value(invalid[1], place, tree)
    else:
        message = re.sub(r"^Expected", "must be", TYPES.sub(_plain_type, message)).rstrip(".") + "."
        if message.startswith("must be a table") and (inner := names_at(place, {})):
            hint = f"Write {place}.{inner[0]} or another key of it."
    return UserError([Problem(message, located(file, place), hint, reason)])


def instead_of_flag(flag: str) -> str:
    """A hint where a key was written as a flag, such as `--optim.lr`."""
    word = flag.lstrip("-").partition("=")[0]
    path = word if any(key.path == word for key in keys()) else ""
    if path:
        return f"Write {path}=VALUE: keys have no dashes."
    return _elsewhere(word, "") or nearest(word, [key.path for key in keys()])


def _plain_type(types: re.Match[str]) -> str:
    """`str | null` -> text: that a key may be left out needs no words."""
    names = types[1].split(" | ")
    return " or ".join(PLAIN.get(name, name) for name in names if name != "null" or len(names) == 1)


def _right_key(word: str, place: str, tree: Mapping[str, Any]) -> str:
    """A hint for an unknown key of the table at `place`."""
    known = names_at(place, tree)
    if hint := _elsewhere(word, place) or nearest(word, known) or nearest(word.partition("_")[2], known):
        return hint
    hint = f"Known here: {', '.join(known)}." if known else "It has none."
    owners = [f'"{key.choice}"' for key in keys() if key.name == f"{place}.{word}"]
    if 0 < len(owners) <= FEW:
        hint += f" It is a key of {choices()[place].tag} = {' or '.join(owners)}."
    return hint


def _elsewhere(word: str, place: str) -> str:
    """A hint where another library, an earlier version or another table has a key of this name; else empty."""
    word = word.lower().replace("-", "_")
    named = [key for key in keys() if word in key.also or (not place and key.name.endswith(f".{word}"))]
    named = [key for key in named if key.table == place] or named
    meanings = {key.path: "" if key.choice else key.meaning for key in named}
    names = " or ".join(meanings)
    return f"Here it is {names}. {meanings.get(names, '')}".rstrip() if 0 < len(meanings) <= FEW else ""


def _right_value(word: str, place: str, tree: Mapping[str, Any]) -> str:
    """A hint for a value that is not one of those that a key may have."""
    elsewhere = next((key.elsewhere for key in keys() if key.name == place), {})
    if words := elsewhere.get(word.lower().replace("-", "_")):
        return f"Write {words}."
    names = values_at(place, tree)
    return nearest(word.lower(), names) or f"Choose one of {', '.join(names)}."

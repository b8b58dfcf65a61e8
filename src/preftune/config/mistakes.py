"""What is wrong with a tree of keys, said with the key, its place and the nearest right one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from preftune.config.explain import choices, elsewhere, keys, names_at, value_at, values_at
from preftune.elsewhere import BY_NAME, spelled
from preftune.errors import Problem, UserError, nearest

SLIP = 0.9  # likeness of a key to a word that is off by one letter
FEW = 4  # at most so many keys or choices are named in a hint
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
        types = [key.type for key in keys() if key.name == place and key.type.startswith("list")]
        if message.startswith("must be a list") and types:
            value = value_at(place, tree)
            by_name = isinstance(value, dict) and types == ["list of number"]  # such as a share of each file
            hint = f"Write {place}={json.dumps([*value.values()] if by_name else [value])}."
        if message.startswith("must be a table") and (inner := names_at(place, {})):
            hint = _instead_of_value(value_at(place, tree), place) or f"Write {place}.{inner[0]} or another key of it."
    return UserError([Problem(message, located(file, place), hint, reason)])


def without_wrong_key(message: str, tree: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tree without the key that a message of msgspec is about, one that is none or whose value is wrong; None where
    it stands in a list. A table goes with its name."""
    about, _, place = message.partition(" - at `")
    unknown = re.search(r"unknown field `(.*?)`", about)
    names = f"{place.rstrip('`').removeprefix('$')}{'.' + unknown[1] if unknown else ''}".removeprefix(".").split(".")
    choice = choices().get(names[0])
    return _without(tree, names[:1] if choice and names[1:] == [choice.tag] else names)


def _without(tree: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any] | None:
    """The tree without the key at these names; None where it has none there."""
    first, *inner = names
    below = _without(tree[first], inner) if inner and isinstance(tree.get(first), dict) else None
    if first not in tree or (inner and below is None):
        return None
    return {**tree, first: below} if inner else {key: value for key, value in tree.items() if key != first}


def instead_of_flag(flag: str) -> str:
    """A hint where a key was written as a flag, such as `--optim.lr`."""
    word = flag.lstrip("-").partition("=")[0]
    path = word if any(key.path == word for key in keys()) else ""
    if path:
        return f"Write {path}=VALUE: keys have no dashes."
    return answer_to(word) or nearest(word, [key.path for key in keys()])


def _plain_type(types: re.Match[str]) -> str:
    """`str | null` -> text: that a key may be left out needs no words."""
    names = types[1].split(" | ")
    return " or ".join(PLAIN.get(name, name) for name in names if name != "null" or len(names) == 1)


def _right_key(word: str, place: str, tree: Mapping[str, Any]) -> str:
    """A hint for an unknown key of the table at `place`."""
    known = names_at(place, tree)
    own = any(key.table == place and word in key.also for key in keys())
    if not own and get_close_matches(word, known, 1, SLIP):  # of this table, before what the word is in another
        return nearest(word, known)
    if hint := answer_to(word, place) or nearest(word, known) or nearest(word.partition("_")[2], known):
        return hint
    hint = f"Known here: {', '.join(known)}." if known else "It has none."
    owners = [f'"{key.choice}"' for key in keys() if key.name == f"{place}.{word}"]
    if 0 < len(owners) <= FEW:
        hint += f" It is a key of {choices()[place].tag} = {' or '.join(owners)}."
    return hint


def answer_to(word: str, place: str = "") -> str:
    """What a name of another library, an earlier version or another table is here; empty where nothing has it.

    place: the table in which it was written.
    """
    word = spelled(word)
    named = [key for key in keys() if word in key.also or (not place and key.name.endswith(f".{word}"))]
    named = [key for key in named if key.table == place] or named
    paths = list(dict.fromkeys(key.path for key in named))
    if not 0 < len(paths) <= FEW:
        return BY_NAME.get(word, "")
    tags = [key.choice for key in named if key.choice and key.path != key.table]
    owner = f" of {named[0].table}={' or '.join(tags)}" if len(paths) == 1 and 0 < len(tags) <= FEW else ""
    example = f"Write for instance {named[0].path}={named[0].choice}."
    meanings = {example if key.type == "choice" else key.meaning for key in named}
    return f"Here it is {' or '.join(paths)}{owner}. {meanings.pop() if len(meanings) == 1 else ''}".rstrip()


def _right_value(word: str, place: str, tree: Mapping[str, Any]) -> str:
    """A hint for a value that is not one of those that a key may have."""
    names = values_at(place, tree)
    return _instead_of_value(word, place) or nearest(word.lower(), names) or f"Choose one of {', '.join(names)}."


def _instead_of_value(value: object, place: str) -> str:
    """A hint for a value that other libraries have at this place; else empty."""
    words = elsewhere().get(place, {}).get(spelled(value)) if isinstance(value, str) else None
    return f"Write {words}." if words else ""

"""A run from a TOML, YAML or JSON file and `key=value` words, with errors that name the key and its place."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from preftune.config.explain import CHOICES, USUAL, keys_below, owners
from preftune.config.run import Run
from preftune.errors import UserError, nearest
from preftune.objective.presets import NAMES, PRESETS

Tree = dict[str, Any]
FEW = 3  # choices that are named where they have a key that another lacks
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
PLAIN = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
    "str | array": "text or a list",
    "float | null": "a number",
    "int | null": "a whole number",
    "str | null": "text",
    "str | array | null": "text or a list",
}
WORDS = re.compile("`(" + "|".join(map(re.escape, PLAIN)) + ")`")


def load(path: str | Path | None, words: Sequence[str] = ()) -> Run:
    """Read a run; `words` such as `optim.lr=1e-6` come last and win. Raises UserError."""
    tree = parse(Path(path)) if path is not None else {}
    for word in words:
        put(tree, word)
    return convert(tree, str(path) if path is not None else "")


def parse(path: Path) -> Tree:
    """The tree of a configuration file, its three forms alike."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [])
        raise UserError("there is no such file.", location=str(path), hint=near) from None
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text: byte {error.start + 1}.", location=str(path)) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.", location=str(path)) from error
    try:
        tree = _read(text, path.suffix)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid {path.suffix[1:].upper()}: {error}.", location=str(path)) from error
    if not isinstance(tree, dict):
        raise UserError("does not hold keys and values.", location=str(path), hint="See `preftune keys`.")
    return tree


def _read(text: str, suffix: str) -> object:
    if suffix == ".json":
        return json.loads(text)
    if suffix in (".yaml", ".yml"):
        import yaml

        try:
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
                raise ValueError("aliases are not allowed")
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
    return tomllib.loads(text)


def put(tree: Tree, word: str) -> None:
    """Set one `a.b=value` in the tree. Choosing another objective or reference drops the old one's keys."""
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise UserError(f'"{word}" is neither a flag nor key=value.', hint="Write it as optim.lr=1e-6.")
    *above, last = key.strip().split(".")
    if not above and last in CHOICES and not text.lstrip().startswith(("{", "[")):
        held = tree.get(last)
        same = isinstance(held, dict) and held.get(CHOICES[last]) == text
        tree[last] = held if same else {CHOICES[last]: text}
        return
    for name in above:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise UserError(f"{name} is a single value and has no key {last}.", location=key)
    named = len(above) == 1 and CHOICES.get(above[0]) == last  # "none" is a name there
    tree[last] = text.strip() if named else _value(text.strip())


def _value(text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    if text in ("null", "none", ""):
        return None
    if NUMBER.fullmatch(text):
        return float(text) if re.search(r"[.eE]", text) else int(text)
    if text[:1] in '[{"':
        for read in (json.loads, _toml):
            try:
                return read(text)
            except (ValueError, RecursionError):
                continue
    return text


def _toml(text: str) -> object:
    """The value as a file would have it behind the equals sign."""
    (value,) = tomllib.loads(f"value = {text}").values()  # a ValueError where more than one stands there
    return value


def convert(tree: Tree, file: str = "") -> Run:
    """A tree of plain values -> Run. Raises UserError naming the key, what is wrong and the nearest right one."""
    for key, choice in CHOICES.items():
        if isinstance(tree.get(key), str):
            tree = {**tree, key: {choice: tree[key]}}
        elif isinstance(tree.get(key), dict):
            tree = {**tree, key: {choice: USUAL[key], **tree[key]}}
    tree = _preset(tree, file)
    for place, leaf in flatten(tree).items():
        if isinstance(leaf, float) and not math.isfinite(leaf):  # TOML and YAML have them; no bound stops infinity
            raise UserError("must be a finite number.", location=": ".join(filter(None, (file, place))))
    try:
        return msgspec.convert(_numbers(tree), Run, strict=True)
    except msgspec.ValidationError as error:
        raise _explained(str(error), tree, file) from None


def _preset(tree: Tree, file: str) -> Tree:
    """The tree with a published mixture written out as its parts."""
    table = tree.get("objective")
    name = table["name"] if isinstance(table, dict) else None
    if not isinstance(table, dict) or not isinstance(name, str) or name not in PRESETS:
        return tree
    if more := next((key for key in table if key != "name"), None):
        raise UserError(f"there is no such key in {name}, which is a sum.", hint="Write out its parts.",
                        location=": ".join(filter(None, (file, f"objective.{more}"))))  # fmt: skip
    return {**tree, "objective": msgspec.to_builtins(PRESETS[name].objective)}


def _numbers(value: object) -> object:
    """YAML reads 1e-6 as text; here it is a number, in every form of file."""
    if isinstance(value, dict):
        return {str(key): _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and NUMBER.fullmatch(value) and re.search(r"[eE]", value):
        return float(value)
    return value


def _explained(message: str, tree: Tree, file: str) -> UserError:
    message, _, place = message.partition(" - at `")
    place = place.rstrip("`").removeprefix("$").removeprefix(".")
    hint = ""
    if unknown := re.search(r"unknown field `(.*?)`", message):
        known = keys_below(place, tree)
        place = f"{place}.{unknown[1]}".lstrip(".")
        message = "there is no such key."
        hint = nearest(unknown[1], known) or nearest(unknown[1].partition("_")[2], known)
        if not hint:
            hint = f"Known here: {', '.join(known)}." if known else "It has none."
            if 0 < len(others := owners(place)) <= FEW:
                hint += f" It is a key of {CHOICES[place.rpartition('.')[0]]} = {' or '.join(others)}."
    elif invalid := re.search(r"Invalid (?:enum )?value '(.*?)'", message):
        message = f'"{invalid[1]}" is not one of them.'
        choice = place.rpartition(".")[2]
        names = (
            keys_below(place.rpartition(".")[0], tree, tags=True)
            if choice in CHOICES.values()
            else keys_below(place, tree)
        )
        here = NAMES.get(invalid[1].lower().replace("-", "_")) if place == "objective.name" else None
        names += [*PRESETS] if place == "objective.name" else []
        hint = f"Write {here}." if here else nearest(invalid[1], names) or f"Choose one of {', '.join(names)}."
    else:
        message = re.sub(r"^Expected", "must be", WORDS.sub(lambda found: PLAIN[found[1]], message)).rstrip(".") + "."
        if message.startswith("must be a table") and (inner := keys_below(place, {})):
            hint = f"Write {place}.{inner[0]} or another key of it."
    location = ": ".join(part for part in (file, place) if part)
    return UserError(message, location=location, hint=hint)


def dump(run: Run) -> str:
    """The whole run as TOML; keys without a value are left out."""
    import tomli_w

    return tomli_w.dumps(_without_none(msgspec.to_builtins(run)))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value


def flatten(value: Any, above: str = "") -> dict[str, Any]:
    """{"optim.lr": 1e-6, ...}: every leaf of a tree under its dotted key."""
    if isinstance(value, dict):
        return {key: leaf for name, item in value.items() for key, leaf in flatten(item, f"{above}{name}.").items()}
    return {above[:-1]: value}

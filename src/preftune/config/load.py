"""A run from a TOML, YAML or JSON file and `key=value` words, and back."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from preftune.config.explain import Choice, choices, keys, tables_first
from preftune.config.mistakes import UNKNOWN_KEY, explained, located, without_wrong_key
from preftune.config.run import Run
from preftune.config.tree import Tree, tree_of
from preftune.errors import Problem, UserError, nearest
from preftune.table import flatten

DEEPEST = 32  # levels of keys and lists
ROWS = (".jsonl", ".parquet", ".gz", ".csv", ".tsv", ".txt", ".arrow")  # endings of files of rows
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def load(path: str | Path | None, words: Sequence[str] = ()) -> Run:
    """Read a run; `words` such as `optim.lr=1e-6` come last and win, whatever their order. Raises UserError."""
    tree = parse(Path(path)) if path is not None else {}
    for word in tables_first(words):
        put(tree, word)
    return convert(tree, str(path) if path is not None else "")


def parse(path: Path) -> Tree:
    """The tree of a configuration file in any of the three forms. Raises UserError."""
    if path.suffix in ROWS:
        hint = f"Write data.train={path}; a configuration is a TOML, YAML or JSON file."
        raise UserError("holds rows, and no configuration.", location=str(path), hint=hint)
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        neighbors = [neighbor.name for neighbor in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = nearest(path.name, neighbors)
        raise UserError("there is no such file.", location=str(path), hint=hint) from None
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text: byte {error.start + 1}.", location=str(path)) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.", location=str(path)) from error
    try:
        tree = _read(text, path.suffix)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not valid {path.suffix[1:].upper()}: {error}.", location=str(path)) from error
    if not isinstance(tree, dict):
        raise UserError("does not hold keys and values.", location=str(path), hint="See `preftune keys`.")
    return tree


def _read(text: str, suffix: str) -> object:
    if suffix == ".json":
        return _json(text)
    return _read_yaml(text) if suffix in (".yaml", ".yml") else tomllib.loads(text)


def _read_yaml(text: str) -> object:
    """YAML without aliases, repeated keys, and numbers to the base of 60, which nobody means."""
    import yaml

    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError("aliases are not allowed")
        loader = yaml.SafeLoader(text)
        nodes = [root := loader.get_single_node()]
        while nodes:
            node = nodes.pop()
            if isinstance(node, yaml.MappingNode):
                _without_repeats([(key.value, value) for key, value in node.value])
                nodes += [value for _, value in node.value]
            elif isinstance(node, yaml.SequenceNode):
                nodes += node.value
            elif isinstance(node, yaml.ScalarNode) and ":" in node.value and node.tag.endswith((":int", ":float")):
                node.tag = "tag:yaml.org,2002:str"
        return None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _without_repeats(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """The pairs as a dict. Raises ValueError where a key stands twice, of which one would be lost in silence."""
    keys = [str(key) for key, _ in pairs]
    if repeated := next((key for key in keys if keys.count(key) > 1), None):
        raise ValueError(f'the key "{repeated}" stands there twice')
    return dict(pairs)


def put_value(tree: Tree, key: str, value: object) -> None:
    """Set a key such as `a.b` in the tree to a value of Python. A table adds to the one that is there; the name of
    another objective or reference drops the old one's keys."""
    *above, last = key.split(".")
    choice = choices().get(key)
    if choice is not None and isinstance(value, str):
        put(tree, f"{key}={value}")
        return
    table = _table_of(tree, above, last, key)
    there = table.get(last)
    if isinstance(value, dict) and isinstance(there, dict) and (choice is None or choice.tag not in value):
        value = {**there, **value}
    table[last] = value


def _table_of(tree: Tree, above: Sequence[str], last: str, location: str) -> Tree:
    """The table that holds a key, made where it is not there. Raises UserError where a single value is in its place."""
    for name in above:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            what = "list of tables, which a word replaces whole" if isinstance(tree, list) else "single value"
            raise UserError(f"{name} is a {what}, and has no key {last}.", location=location)
    return tree


def put(tree: Tree, word: str) -> None:
    """Set one `a.b=value` in the tree. Choosing another objective or reference drops the old one's keys."""
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise UserError(f'"{word}" is neither a flag nor key=value.', hint="Write it as optim.lr=1e-6.")
    *above, last = key.strip().split(".")
    choice = choices().get(above[0] if len(above) == 1 else "" if above else last)
    if choice is not None and not above and not text.lstrip().startswith(("{", "[")):
        table = tree.get(last)
        if not isinstance(table, dict) or table.get(choice.tag) != text:
            tree[last] = {choice.tag: text}
        return
    tree = _table_of(tree, above, last, key)
    is_name = choice is not None and above and last == choice.tag  # "none" is a name there
    is_name = is_name or any(each.name == key.strip() and '"none"' in each.type.split() for each in keys())
    tree[last] = text.strip() if is_name else _value(text.strip())


def _value(text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    if text in ("null", "none", ""):
        return None
    if NUMBER.fullmatch(text):
        return float(text) if re.search(r"[.eE]", text) else int(text)
    if text[:1] in '[{"':
        for read in (_json, _toml):
            try:
                return read(text)
            except (ValueError, RecursionError):
                continue
    return text


def _json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_without_repeats)


def _toml(text: str) -> object:
    """The value of text that stands behind the equals sign in a TOML file."""
    (value,) = tomllib.loads(f"value = {text}").values()  # a ValueError if the text holds further keys
    return value


def convert(tree: Tree, file: str = "") -> Run:
    """A tree of plain values -> Run. Raises UserError that names each key that is none, with the nearest right one, and
    what is wrong with each value."""
    _refuse_what_no_run_holds(tree, file)
    tree = _spelled_out(tree, file)
    for place, leaf in flatten(tree).items():
        if isinstance(leaf, float) and not math.isfinite(leaf):  # TOML and YAML have them; no bound stops infinity
            raise UserError("must be a finite number.", location=located(file, place))
    problems: list[Problem] = []
    while True:
        try:
            run = msgspec.convert(_numbers(tree), Run, strict=True)
        except msgspec.ValidationError as error:
            problems += explained(str(error), tree, file).problems
            if (rest := without_wrong_key(str(error), tree)) is None:
                break
            tree = rest
        else:
            if not problems:
                return run
            break
    raise UserError(problems)


def _refuse_what_no_run_holds(tree: Tree, file: str) -> None:
    """Raise UserError where values are nested too deeply, or a text is none that a file or its name can hold."""
    level: list[tuple[str, object]] = [("", tree)]
    for _ in range(DEEPEST):
        below: list[tuple[str, object]] = []
        for place, value in level:
            if isinstance(value, dict):
                below += [(f"{place}.{key}".lstrip("."), entry) for key, entry in value.items()]
            elif isinstance(value, list | tuple):
                below += [(place, entry) for entry in value]
            elif isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
                raise UserError("holds a zero character or half of one.", location=located(file, place))
        level = below
    if level:
        raise UserError("values are nested too deeply.", location=located(file, level[0][0].partition(".")[0]))


def _spelled_out(tree: Tree, file: str) -> Tree:
    """The tree without short forms: `objective = "dpo"`, a table that leaves its name out, a published mixture."""
    for key, choice in choices().items():
        table = {choice.tag: tree[key]} if isinstance(tree.get(key), str) else tree.get(key)
        if not isinstance(table, dict):
            continue
        table = {choice.tag: choice.usual, **table}
        name = table[choice.tag]
        if isinstance(name, str) and name in choice.presets:
            meant = msgspec.to_builtins(choice.presets[name].objective)
            if (extra := next((inner for inner in table if inner != choice.tag), None)) and "parts" in meant:
                message, place = f"there is no such key in {name}, which is a sum.", located(file, f"{key}.{extra}")
                raise UserError([Problem(message, place, "Write out its parts.", UNKNOWN_KEY)])
            table = _of_preset(table, choice)
        if isinstance(table.get("parts"), list):
            table = {**table, "parts": [_of_preset(part, choice) for part in table["parts"]]}
        tree = {**tree, key: table}
    return tree


def _of_preset(table: Any, choice: Choice) -> Any:
    """The keys of a preset, where a table has its name, with those that the table has besides; else the table."""
    name = table.get(choice.tag) if isinstance(table, dict) else None
    preset = choice.presets.get(name) if isinstance(name, str) else None
    if preset is None:
        return table
    own = {name: value for name, value in table.items() if name != choice.tag}
    return {**msgspec.to_builtins(preset.objective), **own}


def _numbers(value: Any) -> Any:
    """YAML reads 1e-6 as text; here it is a number, in every form of file."""
    if isinstance(value, dict):
        return {str(key): _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and NUMBER.fullmatch(value) and re.search(r"[eE]", value):
        return float(value)
    return value


def dump(run: Run) -> str:
    """The whole run as TOML; keys without a value are left out."""
    import tomli_w

    return tomli_w.dumps(_without_none(tree_of(run)))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value

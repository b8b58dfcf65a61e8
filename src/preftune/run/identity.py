"""What decides a run's result. A run resumes only as the run that it was."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from preftune.config.explain import choices, keys
from preftune.config.run import Run
from preftune.config.tree import tree_of
from preftune.distributed import Distributed
from preftune.errors import Problem, UserError, nearest
from preftune.table import flatten

LONGEST = 40  # characters of a value that is shown whole
SHOWN, CONTEXT = 16, 4  # of a longer one, and of those what stands before the change


def identity(run: Run, digests: Mapping[str, str]) -> dict[str, Any]:
    """Every key of the run that decides its result, and the digests of data, template, tokenizer and models."""
    left_out = {name for key in keys() if not key.decides for name in (key.name, key.table)}
    left_out -= {key.table for key in keys() if key.decides}  # the others are tables of which nothing decides it
    values = flatten(json.loads(msgspec.json.encode(tree_of(run))))
    return {key: value for key, value in values.items() if key not in left_out} | dict(digests)


class Resumed(NamedTuple):
    """The run that is to go on. path: where its identity is; may_differ: keys in which it may become another."""

    path: Path
    may_differ: Sequence[str] = ()

    def changes(self, now: Mapping[str, Any]) -> list[str]:
        """Sentences on what it becomes. Raises UserError where that is not allowed."""
        return compare(self.path, now, self.may_differ)


def compare(path: Path, now: Mapping[str, Any], allowed: Sequence[str]) -> list[str]:
    """Sentences on the allowed differences between the identity at `path` and this one.

    Raises UserError listing the others, and where `allowed` names an unknown key.
    """
    before = json.loads(path.read_text())
    without = {key for key in now.keys() - before.keys() if key.rpartition(".")[0] not in before}  # where it is none
    before |= _defaults(without, now)
    known = sorted(before.keys() | now.keys())
    may_differ = {key for key in known if any(_covers(name, key) for name in allowed)}
    if unknown := next((name for name in allowed if not any(_covers(name, key) for key in known)), None):
        raise UserError(f'Unknown key "{unknown}".', location="--allow-change", hint=nearest(unknown, known))
    changes = {key: _change(before.get(key), now.get(key)) for key in known if before.get(key) != now.get(key)}
    refused = [Problem(f"was {change}.", location=key) for key, change in changes.items() if key not in may_differ]
    if refused:
        first = Problem("another run is in this folder:", location=str(path.parent))
        names = shlex.quote(",".join(changes))
        hint = f"Set it back, start a new run in another `out`, or allow the change: --allow-change {names}"
        if "model" in changes and str(now.get("model.path")).endswith("given in Python)"):
            hint = "Load the model afresh: a run has changed the weights of this one."
        raise UserError([first, *refused, Problem(hint)])
    return [f"{key} {change}" for key, change in changes.items()]


def _defaults(names: Set[str], now: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of these keys. A record without a key is of a build that had none such, and did as the default says;
    None is recorded."""
    tags = {f"{table}.{choice.tag}": now.get(f"{table}.{choice.tag}") for table, choice in choices().items()}
    chosen = {name.rpartition(".")[0]: choice for name, choice in tags.items()}
    return {key.name: json.loads(key.default) for key in keys() if key.name in names and key.name not in tags
            and key.default and key.choice in ("", chosen.get(key.table))}  # fmt: skip


def not_by_default(decides: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an identity that no default says, in order: a later build with further keys has the same."""
    defaults = _defaults(decides.keys(), decides)
    return {key: decides[key] for key in sorted(decides) if decides[key] != defaults.get(key)}


def assert_same_run(now: Mapping[str, Any], dist: Distributed, resumed: Resumed | None = None) -> None:
    """Raise UserError where another rank has another identity, since its machine may have other files, or the run that
    is resumed has one that may not go on as this."""
    hashes = {key: hashlib.sha256(f"{key} {now[key]}".encode()).digest()[:7] for key in sorted(now)}
    if all(dist.all_equal([len(hashes)])):
        same = dist.all_equal([int.from_bytes(digest) for digest in hashes.values()])
        different = [key for key, is_same in zip(hashes, same, strict=True) if not is_same]
    else:
        different = ["its keys"]
    if different:
        hint = "Give each machine the same files and words."
        raise UserError(f"not the same on every rank: {', '.join(different)}.", hint=hint)
    if resumed is not None and dist.first:
        resumed.changes(now)


def _covers(name: str, key: str) -> bool:
    """Whether a key of the configuration stands for this part of an identity: the code of a reward has its own there,
    `reward rewards.py:name`."""
    of_code, _, rest = key.partition(" ")
    return key == name or key.startswith(f"{name}.") or (bool(rest) and of_code in (name, name.partition(".")[0]))


def _change(before: object, now: object) -> str:
    """Both values, long ones from a little before where they part."""
    texts = ["nothing" if value is None else str(value) for value in (before, now)]
    alike = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    start = alike - CONTEXT if alike > SHOWN else 0
    cut = (f"{'...' if start else ''}{text[start : start + SHOWN]}..." for text in texts)
    return " -> ".join(text if len(text) <= LONGEST else part for text, part in zip(texts, cut, strict=True))

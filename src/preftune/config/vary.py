"""The runs of a sweep: every combination of the values that its words give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import product
from typing import NamedTuple

import msgspec

from preftune.config.explain import choices, tables_first
from preftune.config.load import convert, put, put_value
from preftune.config.mistakes import UNKNOWN_KEY
from preftune.config.run import Run
from preftune.config.tree import Tree
from preftune.errors import UserError
from preftune.objective import uses_reference

MOST_RUNS = 200  # more is most likely a mistake


class Variant(NamedTuple):
    """One run of a sweep. words: what sets it apart; lacks: keys that were left out because the run has none such."""

    words: list[str]
    run: Run
    lacks: list[str]

    @property
    def folder(self) -> str:
        """Name of its folder in that of the sweep."""
        return ",".join(self.words).replace("/", "_") or "run"


def combinations(tree: Tree, words: Sequence[str]) -> list[Variant]:
    """Every combination of words such as `objective.beta=0.05,0.1` on top of a tree, as `vary` makes them."""
    names = [_name(word) for word in words]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError("is given twice.", location=repeated, hint="Write its values behind one =, with commas.")
    return vary(tree, [[f"{_name(word)}={value}" for value in _values(word.partition("=")[2])] for word in words])


def vary(
    tree: Tree, alternatives: Sequence[Sequence[str]], values: Mapping[str, object] | None = None
) -> list[Variant]:
    """Every combination of one word of each of the alternatives. values: what a word means, where that is a value of
    Python and the word stands for it alone.

    A key that the objective, aggregate or reference of a combination lacks is left out there, and so is a reference
    that its objective does not use. Combinations that then are equal are one run. Raises UserError, also for a key
    that no combination has.
    """
    names = [_name(words[0]) for words in alternatives]
    fixed = [words[0] for words in alternatives if len(words) == 1]
    variants: dict[bytes, Variant] = {}
    used: set[str] = set()
    refused: dict[str, UserError] = {}
    for varied in product(*(words for words in alternatives if len(words) > 1)):
        fitting, run = _fitting(tree, [*fixed, *varied], values or {}, refused)
        used |= {_name(word) for word in fitting}
        lacks = [_name(word) for word in (*fixed, *varied) if word not in fitting]
        if "reference" in tree and run.reference is None:
            lacks.append("reference")
        variant = Variant([word for word in varied if word in fitting], run, lacks)
        variants.setdefault(msgspec.json.encode(run), variant)
    if unused := next((name for name in names if name not in used), None):
        raise refused[unused]
    if len(variants) > MOST_RUNS:
        raise UserError(f"this sweep has {len(variants)} runs; the limit is {MOST_RUNS}.", hint="Vary fewer keys.")
    return list(variants.values())


def _name(word: str) -> str:
    return word.partition("=")[0]


def _values(text: str) -> list[str]:
    """The values that commas separate; commas inside of brackets separate none."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            values.append("")
        else:
            values[-1] += letter
    return values


def _fitting(
    tree: Tree, words: Sequence[str], values: Mapping[str, object], refused: dict[str, UserError]
) -> tuple[list[str], Run]:
    """The words that fit together and their run. refused: gets the errors of the words that do not, by key."""
    fitting: list[str] = []
    for word in tables_first(words):
        trial = deepcopy(tree)
        if word in values:
            put_value(trial, _name(word), values[word])
        else:
            put(trial, word)
        try:
            convert(trial)
        except UserError as error:
            table, _, key = _name(word).partition(".")
            lacks = table in choices() and key not in ("", choices()[table].tag)  # without which it is another run
            if not lacks or error.problems[0].reason != UNKNOWN_KEY:
                raise
            refused.setdefault(_name(word), error)
        else:
            tree = trial
            fitting.append(word)
    run = convert(tree)
    if run.reference is None or uses_reference(run.objective):
        return fitting, run
    idle = [word for word in fitting if word.startswith("reference")]
    refused |= {_name(word): UserError("these objectives use no reference.", location=word) for word in idle}
    return [word for word in fitting if word not in idle], msgspec.structs.replace(run, reference=None)

"""The runs of a sweep: every combination of the values that its words give."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import msgspec

from preftune.config.load import Tree, convert, put
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.objective import parts

MOST = 200  # runs of one sweep; more is most likely a slip


class Variant(NamedTuple):
    """One run of a sweep, the words that set it apart, and the keys that were left out because it has none such."""

    words: list[str]
    run: Run
    lacks: list[str]


def combinations(tree: Tree, words: Sequence[str]) -> list[Variant]:
    """Every combination of words such as `objective.beta=0.05,0.1` on top of a tree.

    A key that the objective of a combination lacks, or a reference that it does not use, is left out there, and
    combinations that then come out equal are one run. Raises UserError, also for a key that no combination has.
    """
    names = [word.partition("=")[0] for word in words]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError("is given twice.", location=twice, hint="Write its values behind one =, with commas.")
    each = [[f"{word.partition('=')[0]}={value}" for value in _values(word.partition("=")[2])] for word in words]
    fixed = [choice[0] for choice in each if len(choice) == 1]
    choices = [choice for choice in each if len(choice) > 1]
    found: dict[bytes, Variant] = {}
    used: set[str] = set()
    refused: dict[str, UserError] = {}
    for chosen in product(*choices):
        kept, run = _fitting(tree, [*fixed, *chosen], refused)
        used |= {word.partition("=")[0] for word in kept}
        lacks = [word.partition("=")[0] for word in (*fixed, *chosen) if word not in kept]
        if "reference" in tree and run.reference is None:
            lacks.append("reference")
        found.setdefault(msgspec.json.encode(run), Variant([word for word in chosen if word in kept], run, lacks))
    if unused := next((name for name in names if name not in used), None):
        raise refused[unused]
    if len(found) > MOST:
        raise UserError(f"these are {len(found)} runs.", hint=f"A sweep may have {MOST}.")
    return list(found.values())


def _values(text: str) -> list[str]:
    """What commas part, those inside of brackets aside."""
    found, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return found


def _fitting(tree: Tree, words: Sequence[str], refused: dict[str, UserError]) -> tuple[list[str], Run]:
    """The words that fit together, and the run they give; refused: where what an objective lacks is put down."""
    kept: list[str] = []
    made = _copy(tree)
    for word in sorted(words, key=lambda word: word.partition("=")[0].count(".")):  # the objective before its keys
        trial = _copy(made)
        put(trial, word)
        try:
            convert(trial)
        except UserError as error:
            if not word.startswith(("objective.", "aggregate.")) or "no such key" not in str(error):
                raise
            refused.setdefault(word.partition("=")[0], error)
            continue
        made = trial
        kept.append(word)
    run = convert(made)
    if run.reference is None or any("reference" in part.reads for _, part in parts(run.objective)):
        return kept, run
    idle = [word for word in kept if word.startswith("reference")]
    refused |= {word.partition("=")[0]: UserError("these objectives use no reference.", location=word) for word in idle}
    return [word for word in kept if word not in idle], msgspec.structs.replace(run, reference=None)


def _copy(tree: Tree) -> Tree:
    return msgspec.json.decode(msgspec.json.encode(tree))

"""What the objective of a record asks for. The classes in `preftune.objective` hold these facts.

An objective that this version does not know, such as one that its author brought, has no facts and breaks nothing.
"""

from __future__ import annotations

from typing import get_args

from preftune.objective import Single
from preftune.objective.base import ObjectiveTable
from preftune.record.reader import Record

CLASSES: dict[object, type[ObjectiveTable]] = {kind.__struct_config__.tag: kind for kind in get_args(Single)}


def objective_class(name: object) -> type[ObjectiveTable] | None:
    """The class of an objective by the name that a record holds, or None where this version has none of that name."""
    return CLASSES.get(name) if isinstance(name, str) else None


def parts(record: Record) -> list[dict[str, object]]:
    """The objective, or those that a sum adds; empty where the record names none."""
    objective = record.setting("objective")
    if not isinstance(objective, dict):
        return []
    added = objective.get("parts")
    return [part for part in added if isinstance(part, dict)] if isinstance(added, list) else [objective]


def is_sft(record: Record) -> bool:
    """Whether nothing is pushed down: no row has a rejected response, or the objective does not look at it."""
    lines = (*record.evaluations, *record.steps)
    classes = [objective_class(part.get("name")) for part in parts(record)]
    rejects = any(line.get("rejected_tokens") is not None for line in lines)
    return not rejects or (bool(classes) and all(kind is not None and kind.is_sft for kind in classes))


def imitates(record: Record) -> bool:
    """Whether the likelihood of chosen responses is itself a part of the objective, beside their margin."""
    for part in parts(record):
        kind = objective_class(part.get("name"))
        if kind is not None and kind.imitates and part.get("nll_weight") != 0:
            return True
    return is_sft(record)


def anchor_hint(record: Record, verb: str) -> str:
    """`raise objective.beta, `, for a list of remedies; empty where no key holds the policy near its start."""
    in_sum = record.setting("objective.parts") is not None
    for part in parts(record):
        kind = objective_class(part.get("name"))
        for key in kind.anchor_keys if kind is not None else ():
            if key in part:
                return f"{verb} {key} in objective.parts, " if in_sum else f"{verb} objective.{key}, "
    return ""

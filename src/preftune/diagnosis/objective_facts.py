"""What the objective of a record asks for. The classes in `preftune.objective` hold these facts.

An objective that this version does not know, such as one that its author brought, has no facts and breaks nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from preftune.objective import BY_NAME
from preftune.objective.base import Formula
from preftune.record.reader import Record

# The remedy against damage that did best where failures were planted (docs/findings.md).
ADD = 'Add the likelihood of chosen to the objective (a sum of dpo and nll, or objective = "dpo_positive" or "cal_dpo")'


class Part(NamedTuple):
    """An objective of a record, alone or in a sum. keys: its table; kind: its class, None where it is not known."""

    name: str
    keys: dict[str, object]
    kind: type[Formula] | None


def parts(record: Record) -> list[Part]:
    """The objective, or those that a sum adds; empty where the record names none."""
    objective, added = record.setting("objective"), record.setting("objective.parts")
    tables = added if isinstance(added, list) else [objective]
    named = [(table.get("name"), table) for table in tables if isinstance(table, dict)]
    # an objective from outside has its source in the record, and perhaps the name of one of ours
    return [
        Part(name, table, None if "source" in table else BY_NAME.get(name))
        for name, table in named
        if isinstance(name, str)
    ]


def is_sft(record: Record) -> bool:
    """Whether nothing is pushed down: no row has a rejected response, or the objective does not look at it."""
    lines = (*record.evaluations, *record.steps)
    rejects = any(line.get("rejected_tokens") is not None for line in lines)
    kinds = [part.kind for part in parts(record)]
    return not rejects or (bool(kinds) and all(kind is not None and kind.is_sft for kind in kinds))


def of_demos(record: Record) -> bool:
    """Whether each of its rows is a response to imitate."""
    train = record.data.train
    return train is not None and train.kinds.keys() == {"demo"}


def is_surrogate(record: Record) -> bool:
    """Whether only the gradient of its loss means something, as where advantages of drawn tokens are its weights."""
    return any(part.kind is not None and part.kind.kind == "rollouts" for part in parts(record))


def says_scores(record: Record) -> bool:
    """Whether the record is of a reward model, which says scores and no log-probabilities."""
    return any(line.get("chosen_score") is not None for line in (*record.evaluations, *record.steps))


def learner(record: Record) -> str:
    """Who will act on what was learned, at the beginning of a sentence."""
    return "A policy tuned on these scores" if says_scores(record) else "The tuned model"


def imitates(record: Record) -> bool:
    """Whether the likelihood of chosen responses is itself a part of the objective, beside their margin."""
    imitating = [part for part in parts(record) if part.kind is not None and part.kind.imitates]
    return any(part.keys.get("nll_weight") != 0 for part in imitating) or is_sft(record)


def anchor_hint(record: Record, verb: str) -> str:
    """`raise objective.beta, `, for a list of remedies; empty where no key holds the policy near its start."""
    in_sum = record.setting("objective.parts") is not None
    for part in parts(record):
        for key in part.kind.anchor_keys if part.kind is not None else ():
            if key in part.keys:
                return f"{verb} {key} in objective.parts, " if in_sum else f"{verb} objective.{key}, "
    return ""


def last_resort(record: Record) -> str:
    """`; as a last resort raise objective.beta`, at the end of a list of remedies; or empty."""
    hint = anchor_hint(record, "raise").rstrip(", ")
    return f"; as a last resort {hint}" if hint else ""

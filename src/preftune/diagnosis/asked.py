"""What the objective of a record asks for, and which of its keys a remedy may name."""

from __future__ import annotations

from preftune.record.reader import Record

IMITATION = "nll"
LIKELIHOOD = {IMITATION, "orpo", "slic", "cpo", "simper"}  # the likelihood of chosen is itself a part of the value
HOLDS = ("beta", "tau")  # keys that hold the policy near its start, or bound how far the margin is to go


def parts(record: Record) -> list[dict[str, object]]:
    """The objective, or those that a sum adds; empty where the record names none."""
    whole = record.setting("objective")
    if not isinstance(whole, dict):
        return []
    listed = whole.get("parts")
    return [part for part in listed if isinstance(part, dict)] if isinstance(listed, list) else [whole]


def only_imitates(record: Record) -> bool:
    """Whether nothing is pushed down: the rows have nothing rejected, or the objective does not look at it."""
    names = [part.get("name") for part in parts(record)]
    return not _rejects(record) or (bool(names) and all(name == IMITATION for name in names))


def imitates(record: Record) -> bool:
    """Whether the objective itself asks for more probable chosen responses, beyond their margin."""
    asked = (part.get("name") in LIKELIHOOD and part.get("nll_weight") != 0 for part in parts(record))
    return any(asked) or only_imitates(record)


def hold(record: Record, verb: str) -> str:
    """`raise objective.beta, `, for a list of remedies; nothing where the objective has no such key."""
    for key in HOLDS:
        if record.setting(f"objective.{key}") is not None:
            return f"{verb} objective.{key}, "
        if any(key in part for part in parts(record)):
            return f"{verb} {key} in objective.parts, "
    return ""


def _rejects(record: Record) -> bool:
    return any(line.get("rejected_tokens") is not None for line in (*record.evaluations, *record.steps))

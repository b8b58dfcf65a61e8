"""What the texts that every run draws before and after training say about it."""

from __future__ import annotations

import math

from preftune.diagnosis.finding import Finding, number, share
from preftune.diagnosis.objective_facts import is_sft
from preftune.record.reader import Record

FAR, VERY_FAR = 0.2, 0.5  # nats a drawn token from the start
ENDED, FEWER = 0.9, 0.2  # share of texts that ended before, and how much smaller it is after
REPEATED = 0.1  # how much larger the share of 3-grams is that stand in their text before


def goes_far(record: Record) -> Finding | None:
    """A drawn token is far from what the start would have said; a run that draws means to go somewhere."""
    kl, tokens = record.end.get("kl"), record.end.get("tokens")
    if kl is None or not tokens or not math.isfinite(kl) or record.phases or is_sft(record) or kl < FAR * tokens:
        return None
    return Finding(
        code="draws.far",
        severity="serious" if kl >= VERY_FAR * tokens else "warn",
        title="What the model writes is far from its start",
        evidence=f"Its own texts are {number(kl)} nats from the start, {number(kl / tokens, 2)} a token, in texts of "
        f"{number(tokens, 0)} tokens.",
        meaning="It no longer writes as the model that it was, whatever its margins say: read the texts below.",
        remedy="Lower optim.lr, train for fewer steps, or raise objective.beta; adding the likelihood of chosen helps.",
    )


def does_not_end(record: Record) -> Finding | None:
    """Texts that ended before training run on after it."""
    before, after = record.start.get("ended"), record.end.get("ended")
    if before is None or after is None or record.phases or before < ENDED or after > before - FEWER:
        return None
    return Finding(
        code="draws.endless",
        title="The model's texts no longer end",
        evidence=f"{share(before)} of its texts ended before training, {share(after)} after.",
        meaning="It has unlearned to stop.",
        remedy="Repair responses that are cut in the data, lower optim.lr, or add the likelihood of chosen.",
    )


def repeats(record: Record) -> Finding | None:
    """Texts repeat themselves more than before."""
    before, after = record.start.get("repeated"), record.end.get("repeated")
    if before is None or after is None or after < before + REPEATED:
        return None
    return Finding(
        code="draws.repeat",
        title="The model repeats itself",
        evidence=f"{share(after)} of the 3-grams of its texts stand in the same text before, {share(before)} at the "
        "start.",
        meaning="Text that repeats is the usual sign of a model that was pushed too far.",
        remedy="Lower optim.lr, or train for fewer steps.",
    )

"""What the rows themselves tell before training: cuts in the file, contradictions, and steps of hardly any rows."""

from __future__ import annotations

from preftune.diagnosis.finding import Finding, number, share
from preftune.record.reader import Record

PILED = 0.1  # responses of one side that have exactly its greatest length and no closing punctuation
APART = 0.25  # by how much more responses of one side lack closing punctuation
CONTRADICT = 0.02  # of all pairs
REPEATS, DISAGREE = 20, 0.1  # repeated pairs, and the share of them that disagree
SMALL = 2


def cut_in_file(record: Record) -> Finding | None:
    """Responses that were cut before the file was written: they pile up at one length, or one side lacks its ends."""
    texts = record.data.texts
    if texts is None:
        return None
    piled = [side for side, value in texts.piled.items() if value >= PILED]
    chosen, rejected = texts.unclosed.get("chosen"), texts.unclosed.get("rejected")
    apart = chosen is not None and rejected is not None and abs(chosen - rejected) >= APART
    if not piled and not apart:
        return None
    sentences = [
        f"{share(texts.piled[side])} of the {side} responses have exactly the greatest length of their side and no "
        "closing punctuation."
        for side in piled
    ]
    if apart:
        sentences.append(f"{share(chosen)} of chosen and {share(rejected)} of rejected responses lack closing "
                         "punctuation.")  # fmt: skip
    return Finding(
        code="data.cut",
        title="Responses were cut before the file was written",
        evidence=" ".join(sentences),
        meaning="The end token stands behind text that has not ended. The model learns to stop in the middle, or, "
        "where rejected is cut more often, that stopping is wrong.",
        remedy="Generate the responses again with a higher limit, or drop those that reached it on either side.",
    )


def contradictory(record: Record) -> Finding | None:
    """Pairs that occur again with the other order: a lower bound of the labels' noise."""
    texts, pairs = record.data.texts, record.data.train.kinds.get("pair", 0) if record.data.train else 0
    if texts is None or not pairs or not texts.contradictory:
        return None
    many = texts.contradictory >= CONTRADICT * pairs
    if not many and not (texts.repeated >= REPEATS and texts.contradictory >= DISAGREE * texts.repeated):
        return None
    return Finding(
        code="data.contradictory",
        title="Labels contradict each other",
        evidence=f"Of {number(texts.repeated)} training pairs that repeat another pair, {number(texts.contradictory)} "
        "prefer the other response.",
        meaning="At least so many labels are a matter of taste or of chance, and most likely others are too.",
        remedy='Merge repeats into one row with its votes ("preferred"), or use an objective that expects wrong labels '
        '(objective = "robust", or dpo with objective.flip).',
    )


def small_batch(record: Record) -> Finding | None:
    """Steps of one or two rows."""
    rows = record.setting("batch.rows")
    if not isinstance(rows, int) or rows > SMALL or not record.steps or record.phases:
        return None  # of drawn responses a step has several to each prompt
    return Finding(
        code="data.batch",
        severity="info",
        title="Each step sees hardly any rows",
        evidence=f"With batch.rows = {rows} the training accuracy of a step can only be "
        f"{'0 or 1' if rows == 1 else '0, a half or 1'}.",
        meaning="Such steps follow the noise of single labels, and their curves say little.",
        remedy="Raise batch.rows to 16 or more; packs take as much memory as before, which batch.tokens decides.",
    )

"""Overfitting: what was learned from the training rows does not generalize to held-out rows."""

from __future__ import annotations

import math

from preftune.diagnosis.finding import SURE, Finding, number, share
from preftune.diagnosis.objective_facts import anchor_hint
from preftune.record.reader import HeldOutRow, Record
from preftune.record.statistics import Estimate, share_of

OVERFIT = 0.15  # training accuracy is always somewhat higher; a gap this large is memorization
# Up to four passes over the same text teach nearly as much as fresh text does (Muennighoff et al. 2023, 2305.16264).
FRESH = 4.0
NEAR_CHANCE = (
    0.1  # half-width of an accuracy from which 60 %, the least that is usual, could have been told from chance
)
LOSS_ROSE = 0.05  # relative to its lowest value or to how far it fell; smaller rises are noise of an evaluation


def overfitted(record: Record) -> Finding | None:
    """Training accuracy far above held-out accuracy, or a held-out loss that rises again."""
    losses = [
        (loss, line["step"] or 0.0)
        for line in record.evaluations
        if (loss := line.get("loss")) is not None and math.isfinite(loss)
    ]
    (gap, gap_p), (rise, rise_p) = _gap(record), _rise(record, losses)
    if not gap and not rise:
        return None
    worse_than_start = rise != "" and losses[-1][0] > losses[0][0] and (record.end.get("rows") or 0) >= SURE
    repeated = (_times_seen(record) or 0) > 1
    how = "" if record.setting("save.best") else " (save.best, with evaluate.every, exports the best of them)"
    fewer = f"Train for fewer epochs or steps{how}, " if repeated else ""
    remedy = f"{fewer}{anchor_hint(record, 'raise')}lower optim.lr, or add rows."
    return Finding(
        code="anchor.overfit",
        severity="serious" if worse_than_start else "warn",
        title="Held-out rows do not follow the training rows",
        evidence=f"{gap} {rise}".strip(),
        meaning="The model has begun to memorize its training rows; what it gained last does not generalize."
        if repeated
        else "No row was seen twice, so none is memorized: the steps are too large, or the held-out rows are of "
        "another kind than the training rows.",
        remedy=remedy[0].upper() + remedy[1:],
        p=min(gap_p, rise_p),
    )


def _times_seen(record: Record) -> float | None:
    """How often a row was learned from, on average."""
    epochs, train = record.steps[-1].get("epoch") if record.steps else None, record.data.train
    return None if epochs is None else epochs * (train.times if train else 1.0)


def is_no_cause_of_chance(record: Record) -> bool:
    """Whether an accuracy at chance has another cause: held-out rows can tell, and each pair was seen a few times only.

    Pairs that repeat another pair count as one.
    """
    accuracy, seen = record.accuracy(), _times_seen(record)
    if accuracy is None or not seen or accuracy.half_width() > NEAR_CHANCE:
        return False
    train, texts = record.data.train, record.data.texts
    pairs, repeated = train.kinds.get("pair", 0) if train else 0, texts.repeated if texts else 0
    return seen * (pairs / (pairs - repeated) if pairs > repeated else 1.0) <= FRESH


def _gap(record: Record) -> tuple[str, float]:
    """Accuracy in training and held out, where they differ much, and the p value of the difference."""
    train, held_out = record.recent("accuracy"), record.accuracy()
    if train is None or held_out is None or not train - held_out.value > OVERFIT:
        return "", 1.0
    examples = math.fsum(step.get("examples") or 0.0 for step in record.last_steps)
    in_training = share_of(train, round(examples))
    error = math.hypot(held_out.error, in_training.error if in_training else 0.0)
    p = held_out._replace(value=train - held_out.value, error=error).p_above(0.0)
    return f"Accuracy is {share(train)} on the rows of the last steps and {share(held_out.value)} held out.", p


def _rise(record: Record, losses: list[tuple[float, float]]) -> tuple[str, float]:
    """The held-out loss at its lowest and at the end, where it rose, and the p value. losses: with their step."""
    if not losses:
        return "", 1.0
    (lowest, step), last = min(losses), losses[-1][0]
    if last - lowest <= LOSS_ROSE * max(abs(lowest), losses[0][0] - lowest):
        return "", 1.0
    text = f"The held-out loss rose from {number(lowest, 3)} at step {number(step)} to {number(last, 3)}."
    change = _loss_change(record)
    return text, 0.0 if change is None else change._replace(value=last - lowest).p_above(0.0)


def _loss_change(record: Record) -> Estimate | None:
    """The change of the held-out loss with its error, to first order: each row's changes of log-probability times the
    slopes that training began with. None where the record does not tell rows apart.
    """
    up, down = record.early("chosen_incentive") or 0.0, record.early("rejected_incentive") or 0.0

    def loss_change(row: HeldOutRow) -> float:
        if row.chosen_logp_change is None and row.rejected_logp_change is None:
            return up * (row.margin or 0.0)  # a ranking has a margin and nothing else
        return up * (row.chosen_logp_change or 0.0) + down * (row.rejected_logp_change or 0.0)

    return record.average(loss_change)

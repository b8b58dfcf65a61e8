"""The known failures of preference tuning, measured from a record alone; so any old run can be diagnosed again."""

from __future__ import annotations

from collections.abc import Callable

from preftune.diagnosis import anchor, displacement, length, overfit, shift
from preftune.diagnosis.finding import ORDER, Finding
from preftune.record.reader import Record

CHECKS: tuple[Callable[[Record], Finding | None], ...] = (
    anchor.not_finite,
    anchor.starts_off_zero,
    anchor.stuck,
    anchor.no_better_than_chance,
    overfit.overfitted,
    displacement.chosen_falls,
    length.reward_follows_length,
    length.accurate_only_when_longer,
    length.data_prefer_long,
    anchor.drifted,
    anchor.weak_reference,
    shift.responses_unlikely,
    shift.rows_skipped,
    shift.rows_cut,
    shift.nothing_held_out,
)


def diagnose(record: Record) -> list[Finding]:
    """Every finding of every check, the most serious first. A check whose numbers the record lacks finds nothing."""
    found = [finding for check in CHECKS if (finding := check(record))]
    return sorted(found, key=lambda finding: ORDER.index(finding.severity))


__all__ = ["CHECKS", "Finding", "diagnose"]

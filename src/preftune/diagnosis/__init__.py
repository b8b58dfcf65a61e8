"""The known failures of preference tuning, measured from a record alone, so that any old run can be diagnosed again.

Held by tests/diagnosis/test_findings.py.
"""

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
    """The findings of all checks, the most serious first. A check whose numbers the record lacks finds nothing."""
    findings = [finding for check in CHECKS if (finding := check(record))]
    return sorted(findings, key=lambda finding: ORDER.index(finding.severity))


__all__ = ["CHECKS", "Finding", "diagnose"]

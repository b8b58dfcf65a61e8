"""The known failures of preference tuning, measured from a record alone, so that any old run can be diagnosed again.

docs/findings.md lists every code. Held by tests/diagnosis.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from preftune.diagnosis import anchor, data, displacement, draws, length, online, overfit, reward, shift
from preftune.diagnosis.finding import ALPHA, ORDER, Finding
from preftune.record.reader import Record

# A cause stands before what follows from it; among findings of one severity this is the order on the page.
CHECKS: tuple[Callable[[Record], Finding | None], ...] = (
    anchor.not_finite,
    online.reward_without_gain,
    online.sampler_off,
    online.does_not_end,
    online.collapsed,
    online.says_nothing,
    online.below_ceiling,
    online.grows_longer,
    online.value_blind,
    online.slope_off,
    anchor.stuck,
    shift.trained_on_too,
    data.cut_in_file,
    shift.responses_unlikely,
    shift.end_wrong,
    overfit.overfitted,
    shift.end_unlearned,
    anchor.weak_reference,
    anchor.starts_off_zero,
    anchor.foreign_reference,
    reward.told_by_a_word,
    reward.parts_differ,
    length.reward_follows_length,
    anchor.drifted,
    draws.goes_far,
    draws.does_not_end,
    draws.repeats,
    displacement.chosen_falls,
    anchor.no_better_than_chance,
    data.contradictory,
    reward.too_sure,
    reward.too_easy,
    length.data_prefer_long,
    shift.rows_skipped,
    shift.rows_cut,
    shift.nothing_held_out,
    anchor.few_steps,
    data.small_batch,
)
OF_DRAWS = ("draws.far", "draws.endless", "draws.repeat")
OF_THE_POLICY = ("anchor.drift", *OF_DRAWS, "displacement.chosen", "reward.too_sure", "reward.too_easy")
OF_LENGTH = ("length.reward", "reward.word")
TESTS = 8  # checks with a p value: weak, overfit, displacement, length, word, parts, end, too sure
# What each cause explains: those findings are named below it and not beside it.
EXPLAINS: dict[str, tuple[str, ...]] = {
    "online.hacked": ("online.length", "online.ceiling"),
    "online.ended": ("online.length",),
    "online.collapse": ("online.flat",),
    "online.flat": ("online.ceiling",),
    "anchor.not_finite": ("anchor.stuck", "anchor.chance", "anchor.overfit", *OF_THE_POLICY, *OF_LENGTH),
    # what is measured on a model that did not move is where it began, and no fault that was learned
    "anchor.stuck": ("anchor.chance", "anchor.overfit", "reward.word", "reward.parts", "length.reward", *OF_THE_POLICY),
    "end.wrong": ("end.unlearned",),
    "shift.seen": ("reward.too_easy", *OF_LENGTH),
    "shift.unlikely": ("end.wrong", "end.unlearned", "anchor.chance", "anchor.overfit", "reward.parts",
                       *OF_THE_POLICY, *OF_LENGTH),
    "anchor.overfit": ("anchor.chance", "end.unlearned", "reward.parts", *OF_THE_POLICY, *OF_LENGTH),
    "data.cut": ("end.wrong", "end.unlearned", "anchor.chance", "shift.cut", "length.data", *OF_THE_POLICY, *OF_LENGTH),
    "end.unlearned": (*OF_THE_POLICY[1:], *OF_LENGTH),
    "reward.word": ("length.reward", "length.data", *OF_THE_POLICY),
    "length.reward": ("length.data", *OF_THE_POLICY),
    "draws.far": OF_DRAWS[1:],
    "draws.endless": ("draws.repeat",),
    "anchor.drift": (*OF_DRAWS, "end.unlearned", "displacement.chosen", "reward.too_sure"),
    "displacement.chosen": (*OF_DRAWS, "reward.too_sure", "reward.too_easy"),
    "reward.parts": (*OF_DRAWS, "anchor.chance", "reward.too_sure"),
    "anchor.chance": (*OF_DRAWS, "length.reward", "reward.too_sure"),
    "data.contradictory": (*OF_DRAWS, "reward.too_sure"),
}  # fmt: skip
# Where most pairs differ in one word, both sides fall because of what they share, and that is why the model moves far.
OF_TWINS: dict[str, tuple[str, ...]] = {
    "anchor.drift": (),
    "displacement.chosen": ("anchor.drift", *EXPLAINS["displacement.chosen"]),
}
# Rows that were seen a few times are no reason to be at chance: what was memorized there is labels that say nothing.
OF_FRESH_ROWS: dict[str, tuple[str, ...]] = {
    "anchor.overfit": tuple(code for code in EXPLAINS["anchor.overfit"] if code != "anchor.chance"),
    "anchor.chance": ("anchor.overfit", *EXPLAINS["anchor.chance"]),
}


def diagnose(record: Record) -> list[Finding]:
    """The findings of all checks, the most serious first, and what follows from a finding within it.

    A check whose numbers the record lacks finds nothing. Findings that rest on a test share one error rate (Holm 1979).
    """
    findings = _beyond_noise([finding for check in CHECKS if (finding := check(record))])
    texts = record.data.texts
    explains = EXPLAINS | OF_TWINS if texts is not None and texts.twins >= reward.TWINS else EXPLAINS
    explains = explains | OF_FRESH_ROWS if overfit.is_no_cause_of_chance(record) else explains
    by_code = {finding.code: finding for finding in findings}
    for cause in by_code.copy():  # in the order of CHECKS
        if cause in by_code:
            effects = [by_code.pop(code) for code in explains.get(cause, ()) if code in by_code]
            by_code[cause] = _with_effects(by_code[cause], effects)
    return sorted(by_code.values(), key=lambda finding: ORDER.index(finding.severity))


def _beyond_noise(findings: list[Finding]) -> list[Finding]:
    tested = sorted((finding for finding in findings if finding.p is not None), key=lambda finding: finding.p or 0.0)
    significant = 0
    while significant < len(tested) and (tested[significant].p or 0.0) <= ALPHA / (TESTS - significant):
        significant += 1
    refuted = {finding.code for finding in tested[significant:]}
    return [finding for finding in findings if finding.code not in refuted]


def _with_effects(cause: Finding, effects: list[Finding]) -> Finding:
    """The cause with what follows from it. What to do against one that is worse than its cause stands there too,
    unless that begins with what the cause asks for already."""
    worst = min((cause, *effects), key=lambda finding: ORDER.index(finding.severity))
    named = tuple(line for effect in effects for line in (f"{effect.title}. {effect.evidence}", *effect.effects))
    remedy = cause.remedy
    if worst.severity != cause.severity and worst.remedy.partition(",")[0].lower() not in cause.remedy.lower():
        remedy = f"{remedy} If that is not enough: {worst.remedy[0].lower()}{worst.remedy[1:]}"
    return replace(cause, severity=worst.severity, effects=(*cause.effects, *named), remedy=remedy)


__all__ = ["CHECKS", "Finding", "diagnose"]

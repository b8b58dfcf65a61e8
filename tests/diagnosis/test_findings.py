"""Each check finds what it is for, and nothing just below its threshold."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from preftune.diagnosis import CHECKS, diagnose
from preftune.diagnosis.finding import number, share, share_error
from preftune.record.read import Counts, DataSummary, Event, HeldOutRow, Numbers, Record

START: Numbers = {
    "step": 0, "rows": 400, "loss": math.log(2), "margin": 0.0, "accuracy": 0.5, "chosen_reward": 0.0,
    "rejected_reward": 0.0, "chosen_logp": -60.0, "rejected_logp": -60.0, "chosen_mean_logp": -1.5,
    "rejected_mean_logp": -1.5, "chosen_logp_change": 0.0, "rejected_logp_change": 0.0, "chosen_tokens": 40.0,
    "rejected_tokens": 40.0, "accuracy_chosen_longer": 0.5, "accuracy_chosen_shorter": 0.5,
    "reward_length_correlation": None,
}  # fmt: skip
END: Numbers = {
    **START, "step": 100, "loss": 0.5, "margin": 6.0, "accuracy": 0.72, "chosen_reward": 0.2, "rejected_reward": -0.4,
    "chosen_logp_change": 2.0, "rejected_logp_change": -4.0, "accuracy_chosen_longer": 0.74,
    "accuracy_chosen_shorter": 0.7, "reward_length_correlation": 0.1,
}  # fmt: skip
ROW = HeldOutRow(
    id="", margin=6.0, chosen_logp=-58.0, rejected_logp=-64.5, chosen_logp_change=2.0, rejected_logp_change=-4.5,
    rejected_tokens=40.0,
)  # fmt: skip
ROWS = tuple(replace(ROW, id=str(i), chosen_tokens=40.0 + i % 3 - 1) for i in range(400))
STEPS: tuple[Numbers, ...] = tuple(
    {"step": i, "loss": 0.69 - 0.002 * i, "margin": 0.06 * i, "accuracy": 0.5 + 0.0025 * i, "grad_norm": 1.0,
     "chosen_incentive": -0.05, "rejected_incentive": 0.05}
    for i in range(1, 101)
)  # fmt: skip
HEALTHY = Record(
    path=Path("run"), run={"objective": {"name": "dpo", "beta": 0.1}, "reference": {"kind": "stored"}},
    steps=STEPS, evaluations=(START, END), rows=ROWS,
    data=DataSummary(train=Counts(read=1000, kept=990, cut=10, skipped={"too_long": 10}), chosen_longer=0.55),
)  # fmt: skip


def end(**changed: float | None) -> Record:
    return replace(HEALTHY, evaluations=(START, {**END, **changed}))


def start(**changed: float | None) -> Record:
    return replace(HEALTHY, evaluations=({**START, **changed}, END))


def steps(**changed: float) -> Record:
    return replace(HEALTHY, steps=tuple({**step, **changed} for step in STEPS))


def rows(**changed: float) -> Record:
    return replace(HEALTHY, rows=tuple(replace(row, **changed) for row in ROWS))


def train(**changed: object) -> Record:
    return replace(HEALTHY, data=replace(HEALTHY.data, train=replace(HEALTHY.data.train, **changed)))


def chosen_longer(value: float) -> Record:
    return replace(HEALTHY, data=replace(HEALTHY.data, chosen_longer=value))


def losses(*values: float) -> Record:
    points = [{**END, "step": 50.0 * i, "loss": loss} for i, loss in enumerate(values)]
    return replace(HEALTHY, evaluations=({**START, "loss": values[0]}, *points[1:]))


def stuck(**changed: float) -> Record:
    still = {"margin": 0.01, "loss": 0.6929} | changed
    run = replace(HEALTHY, steps=tuple({**step, **still} for step in STEPS))
    return replace(run, evaluations=(START, {**START, "step": 100, "rows": 400, "margin": still["margin"]}))


CASES: list[tuple[str, str, Record, Record]] = [
    ("length.reward", "warn", end(reward_length_correlation=0.31), end(reward_length_correlation=0.29)),
    ("length.reward", "serious", end(reward_length_correlation=0.6),
     end(reward_length_correlation=0.6, rejected_tokens=None)),
    ("length.accuracy", "warn", end(accuracy_chosen_longer=0.85, accuracy_chosen_shorter=0.6),
     end(accuracy_chosen_longer=0.74, accuracy_chosen_shorter=0.6)),
    ("length.accuracy", "serious", end(accuracy_chosen_longer=0.9, accuracy_chosen_shorter=0.3),
     replace(end(accuracy_chosen_longer=0.9, accuracy_chosen_shorter=0.6), rows=ROWS[:12])),
    ("length.data", "info", chosen_longer(0.66), chosen_longer(0.64)),
    ("displacement.chosen", "warn", end(chosen_logp_change=-1.2), end(chosen_logp_change=-0.9)),
    ("displacement.chosen", "serious", end(chosen_logp_change=-10.0, rejected_logp_change=-16.0),
     end(chosen_logp_change=-10.0, rejected_logp_change=-9.0)),
    ("anchor.drift", "warn", end(rejected_logp_change=-21.0), end(rejected_logp_change=-19.0)),
    ("anchor.drift", "serious", end(rejected_logp_change=-41.0), end(rejected_logp_change=-19.9)),
    ("anchor.start", "warn", start(margin=0.2), start(margin=0.05)),
    ("anchor.start", "warn", start(margin=0.2), replace(start(margin=0.2), run={"reference": {"kind": "none"}})),
    ("anchor.start", "serious", start(margin=-3.0),
     replace(start(margin=-3.0), run={"reference": {"kind": "stored", "path": "other"}})),
    ("anchor.weak", "warn", rows(chosen_logp=-70.0), rows(chosen_logp=-55.0)),
    ("anchor.stuck", "serious", stuck(), stuck(margin=0.5)),
    ("anchor.chance", "warn", end(accuracy=0.53), end(accuracy=0.57)),
    ("anchor.overfit", "warn", steps(accuracy=0.95), steps(accuracy=0.85)),
    ("anchor.overfit", "warn", losses(0.69, 0.5, 0.6), losses(0.69, 0.5, 0.505)),
    ("anchor.overfit", "serious", losses(0.69, 0.5, 0.8), losses(0.69, 0.6, 0.5)),
    ("anchor.not_finite", "serious", replace(HEALTHY, steps=(*STEPS, {"step": 101, "loss": math.nan})), HEALTHY),
    ("anchor.not_finite", "serious", replace(HEALTHY, events=(Event("non_finite", 7, "loss"),)),
     replace(HEALTHY, events=(Event("note", 7, "loss"),))),
    ("shift.unlikely", "warn", start(chosen_mean_logp=-3.4, rejected_mean_logp=-3.1),
     start(chosen_mean_logp=-3.4, rejected_mean_logp=-2.9)),
    ("shift.skipped", "warn", train(skipped={"too_long": 60}), train(skipped={"too_long": 40})),
    ("shift.skipped", "serious", train(skipped={"too_long": 160, "pair.identical": 60}), train(skipped={})),
    ("shift.cut", "warn", train(cut=120), train(cut=80)),
    ("shift.held_out", "info", end(rows=60), end(rows=100)),
    ("shift.held_out", "warn", replace(HEALTHY, evaluations=()), HEALTHY),
]  # fmt: skip


def codes(record: Record) -> dict[str, str]:
    return {finding.code: finding.severity for finding in diagnose(record)}


def test_healthy_run_has_no_finding() -> None:
    assert diagnose(HEALTHY) == []


@pytest.mark.parametrize(("code", "severity", "ill", "well"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_found_where_it_is_and_only_there(code: str, severity: str, ill: Record, well: Record) -> None:
    assert codes(ill).get(code) == severity
    assert code not in codes(well)


def test_every_check_has_a_case() -> None:
    hit = {check for check in CHECKS for _, _, ill, _ in CASES if check(ill)}
    assert hit == set(CHECKS)


def test_findings_name_their_numbers_and_come_by_severity() -> None:
    ill = end(chosen_logp_change=-10.0, rejected_logp_change=-16.0, reward_length_correlation=0.4, rows=60)
    found = diagnose(ill)
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=["serious", "warn", "info"].index)
    fallen = next(f for f in found if f.code == "displacement.chosen")
    for evidence in ("−10.0", "−16.0", "28\u00a0%", "1.00 times"):  # exp(10 / 40) = 1.284
        assert evidence in fallen.evidence
    assert all(f.title and f.evidence and f.meaning and f.remedy for f in found)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_nothing_to_go_by_is_no_crash(check: Callable[[Record], object]) -> None:
    for record in (Record(path=Path("run")), _holes(None), _holes(math.nan)):
        check(record)


def _holes(hole: float | None) -> Record:
    """Every number missing, or none of them a number."""
    lines = [{key: value if key in ("step", "rows") else hole for key, value in line.items()} for line in (START, END)]
    blank = tuple({key: value if key == "step" else hole for key, value in step.items()} for step in STEPS)
    return replace(HEALTHY, evaluations=tuple(lines), steps=blank, rows=())


def test_displacement_is_seen_in_training_where_nothing_is_held_out() -> None:
    falling = steps(chosen_logp_change=-5.0, rejected_logp_change=-9.0, chosen_tokens=40.0)
    assert "displacement.chosen" in codes(replace(falling, evaluations=(), rows=()))


def test_demos_raise_no_pair_findings() -> None:
    """SFT has neither margin nor rejected; a rising chosen log-probability is what it is for."""
    demo: Numbers = {"step": 0, "rows": 400, "loss": 1.5, "chosen_mean_logp": -1.5, "chosen_tokens": 40.0}
    after: Numbers = {**demo, "step": 100, "loss": 1.2, "chosen_mean_logp": -1.2, "chosen_logp_change": 12.0}
    course = tuple({"step": i, "loss": 1.5 - 0.003 * i, "grad_norm": 1.0} for i in range(100))
    assert diagnose(Record(path=Path("sft"), evaluations=(demo, after), steps=course)) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (320.0, "320"), (1234567.0, "1,234,567"), (99.99, "100"), (12.345, "12.3"), (1.2345, "1.23"),
     (0.01234, "0.012"), (2.1e-7, "2.1e−7"), (-3.99, "−3.99"), (-0.0, "0"), (math.nan, "not a number"),
     (-math.inf, "−∞"), (None, "–")],
)  # fmt: skip
def test_numbers_are_spelled(value: float | None, text: str) -> None:
    assert number(value) == text


def test_signs_and_shares() -> None:
    assert number(3.14159, 1, sign=True) == "+3.1"
    assert number(-0.04, 1, sign=True) == "0.0", "a rounded zero has no sign"
    assert share(0.7284) == "72.8\u00a0%"
    assert share_error(0.5, 398) == pytest.approx(0.025)
    assert share_error(1.0, 10) > 0

"""Findings about drawn texts and about runs that draw: each speaks at its threshold and is silent just below it."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from preftune.diagnosis import diagnose
from preftune.events import Happened
from preftune.record.parse import Numbers
from preftune.record.reader import Record

START: Numbers = {"step": 0, "score": 0.0, "score_error": 0.05, "kl": 0.0, "ceiling": 0.0, "tokens": 20.0, "ended": 1.0,
                  "repeated": 0.01}  # fmt: skip
END: Numbers = {**START, "step": 40, "score": 1.9, "kl": 1.4, "ceiling": 2.0}
STEPS: tuple[Numbers, ...] = tuple({"step": i, "loss": 1.0 - i / 100, "grad_norm": 1.0} for i in range(1, 41))
PHASES: tuple[Numbers, ...] = tuple(
    {"phase": i, "step": 2 * i, "score": i / 10, "tokens": 20.0, "ended": 1.0, "distinct": 1.0, "value_explained": 0.5}
    for i in range(20)
)
REWARDS: dict[str, object] = {"reward": [{"function": "a:f", "weight": 1.0}, {"verify": "exact", "weight": 0.0}]}
ONLINE = Record(path=Path("run"), run={"objective": {"name": "rloo", "beta": 0.5}, **REWARDS}, steps=STEPS,
                evaluations=(START, END), phases=PHASES)  # fmt: skip
OFFLINE = replace(ONLINE, run={"objective": {"name": "dpo", "beta": 0.1}}, phases=(),
                  evaluations=({**START, "rows": 400}, {**END, "rows": 400, "kl": 3.0}))  # fmt: skip


def codes(record: Record) -> set[str]:
    named = diagnose(record)
    return {f.code for f in named} | {word for f in named for word in f.effects}


def phases(**courses: tuple[float, float]) -> tuple[Numbers, ...]:
    """The phases with numbers that go from one value to another."""
    return tuple(
        {**phase, **{key: a + (b - a) * i / (len(PHASES) - 1) for key, (a, b) in courses.items()}}
        for i, phase in enumerate(PHASES)
    )


def test_a_healthy_run_that_draws_has_no_finding_of_its_draws() -> None:
    assert not [code for code in codes(ONLINE) if code.startswith(("online.", "draws."))]
    assert not [code for code in codes(OFFLINE) if code.startswith("draws.")]


@pytest.mark.parametrize(
    ("code", "broken", "healthy"),
    [
        ("online.ended", {"ended": (1.0, 0.8)}, {"ended": (1.0, 0.92)}),
        ("online.length", {"tokens": (20.0, 34.0)}, {"tokens": (20.0, 28.0)}),
        ("online.collapse", {"distinct": (1.0, 0.3)}, {"distinct": (1.0, 0.6)}),
        ("online.value", {"value_explained": (0.0, 0.02)}, {"value_explained": (0.0, 0.2)}),
        ("online.sampler", {"sampler_off": (0.06, 0.06)}, {"sampler_off": (0.04, 0.04)}),
        ("online.hacked", {"reward verify exact": (0.9, 0.2)}, {"reward verify exact": (0.5, 0.6)}),
    ],
)
def test_of_phases(code: str, broken: dict, healthy: dict) -> None:
    assert code in {f.code for f in diagnose(replace(ONLINE, phases=phases(**broken)))}
    assert code not in {f.code for f in diagnose(replace(ONLINE, phases=phases(**healthy)))}


def test_a_reward_that_is_learned_from_is_no_check_on_itself() -> None:
    learned = {"reward": [{"function": "a:f", "weight": 1.0}, {"verify": "exact", "weight": 0.5}]}
    record = replace(ONLINE, run={**ONLINE.run, **learned}, phases=phases(**{"reward verify exact": (0.9, 0.2)}))
    assert "online.hacked" not in {f.code for f in diagnose(record)}


@pytest.mark.parametrize(("score", "speaks"), [(1.6, True), (1.85, False)])
def test_of_the_ceiling(score: float, speaks: bool) -> None:
    record = replace(ONLINE, evaluations=(START, {**END, "score": score}))
    assert ("online.ceiling" in {f.code for f in diagnose(record)}) == speaks


@pytest.mark.parametrize(("slope", "speaks"), [(0.7, True), (0.9, False), (1.4, True)])
def test_of_the_reward_models_slope(slope: float, speaks: bool) -> None:
    record = replace(ONLINE, events=(Happened(0, "reward_slope", "", {"slope": slope}),))
    assert ("online.slope" in {f.code for f in diagnose(record)}) == speaks


@pytest.mark.parametrize(
    ("code", "broken", "healthy"),
    [
        ("draws.far", {"kl": 4.2}, {"kl": 3.8}),
        ("draws.endless", {"ended": 0.75}, {"ended": 0.85}),
        ("draws.repeat", {"repeated": 0.12}, {"repeated": 0.1}),
    ],
)
def test_of_texts(code: str, broken: dict, healthy: dict) -> None:
    first, last = OFFLINE.evaluations
    assert code in {f.code for f in diagnose(replace(OFFLINE, evaluations=(first, {**last, **broken})))}
    assert code not in {f.code for f in diagnose(replace(OFFLINE, evaluations=(first, {**last, **healthy})))}


def test_a_run_that_draws_may_go_far() -> None:
    first, last = ONLINE.evaluations
    assert "draws.far" not in {f.code for f in diagnose(replace(ONLINE, evaluations=(first, {**last, "kl": 9.0})))}

"""Records of runs that draw, ill and well, for each finding about drawn text."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from preftune.events import Happened
from preftune.record.parse import Numbers
from preftune.record.reader import Record

START: Numbers = {"step": 0, "score": 0.0, "score_error": 0.05, "kl": 0.0, "ceiling": 0.0, "tokens": 20.0, "ended": 1.0,
                  "repeated": 0.01, "rejected_tokens": 20.0}  # fmt: skip
END: Numbers = {**START, "step": 40, "score": 1.9, "kl": 1.4, "ceiling": 2.0}
STEPS: tuple[Numbers, ...] = tuple({"step": i, "loss": 1.0 - i / 100, "grad_norm": 1.0} for i in range(1, 41))
PHASES: tuple[Numbers, ...] = tuple(
    {"phase": i, "step": 2 * i, "score": i / 10, "tokens": 20.0, "ended": 1.0, "distinct": 1.0, "value_explained": 0.5}
    for i in range(20)
)
REWARDS: dict[str, object] = {"reward": [{"function": "a:f", "weight": 1.0}, {"verify": "exact", "weight": 0.0}]}
LEARNED: dict[str, object] = {"reward": [{"function": "a:f", "weight": 1.0}, {"verify": "exact", "weight": 0.5}]}
TWICE: dict[str, object] = {"reward": [{"verify": "exact", "weight": 1.0}, {"verify": "exact", "weight": 0.0}]}
RLOO: dict[str, object] = {"objective": {"name": "rloo", "beta": 0.5}}
ONLINE = Record(path=Path("run"), run=RLOO | REWARDS, steps=STEPS, evaluations=(START, END), phases=PHASES)
OFFLINE = replace(ONLINE, run={"objective": {"name": "dpo", "beta": 0.1}}, phases=(), evaluations=(START, END))


def phases(record: Record = ONLINE, **courses: tuple[float, float]) -> Record:
    """The record with numbers of its phases that go from one value to another."""
    last = len(PHASES) - 1
    changed = ({key: a + (b - a) * i / last for key, (a, b) in courses.items()} for i in range(len(PHASES)))
    return replace(record, phases=tuple({**phase, **more} for phase, more in zip(PHASES, changed, strict=True)))


def ended(record: Record = OFFLINE, **numbers: float) -> Record:
    """The record whose last evaluation has these numbers."""
    return replace(record, evaluations=(START, {**END, **numbers}))


def sloped(slope: float) -> Record:
    return replace(ONLINE, events=(Happened(0, "reward_slope", "", {"slope": slope}),))


FALLS = {"reward verify exact": (0.9, 0.2)}
SECOND_FALLS = {"reward verify exact (2)": (0.9, 0.2)}
CASES: list[tuple[str, str, Record, Record]] = [
    ("online.hacked", "serious", phases(**FALLS), phases(**{"reward verify exact": (0.5, 0.6)})),
    ("online.hacked", "serious", phases(**FALLS), phases(replace(ONLINE, run=RLOO | LEARNED), **FALLS)),
    (
        "online.hacked",
        "serious",
        phases(replace(ONLINE, run=RLOO | TWICE), **SECOND_FALLS),
        phases(replace(ONLINE, run=RLOO | TWICE), **FALLS),
    ),
    ("online.sampler", "warn", phases(sampler_off=(0.06, 0.06)), phases(sampler_off=(0.04, 0.04))),
    ("online.ended", "warn", phases(ended=(1.0, 0.8)), phases(ended=(1.0, 0.92))),
    ("online.ended", "serious", phases(ended=(1.0, 0.4)), ONLINE),
    ("online.collapse", "warn", phases(distinct=(1.0, 0.3)), phases(distinct=(1.0, 0.6))),
    ("online.flat", "serious", phases(alike=(0.95, 0.95)), phases(alike=(0.8, 0.8))),
    ("online.flat", "warn", phases(alike=(0.2, 1.0)), phases(alike=(0.2, 0.85))),
    ("online.ceiling", "warn", ended(ONLINE, score=1.6), ended(ONLINE, score=1.85)),
    ("online.ceiling", "serious", ended(ONLINE, score=0.6), ended(ONLINE, score=1.6, score_error=0.2)),
    ("online.length", "warn", phases(tokens=(20.0, 34.0)), phases(tokens=(20.0, 28.0))),
    ("online.value", "warn", phases(value_explained=(0.0, 0.02)), phases(value_explained=(0.0, 0.2))),
    ("online.slope", "info", sloped(0.7), sloped(0.9)),
    ("draws.far", "warn", ended(kl=4.2), ended(kl=3.8)),
    ("draws.far", "serious", ended(kl=10.5), ended(ONLINE, kl=10.5)),
    ("draws.endless", "warn", ended(ended=0.75), ended(ended=0.85)),
    ("draws.repeat", "warn", ended(repeated=0.12), ended(repeated=0.1)),
]

"""Small runs compute what they computed when golden.json was written: there to the last bit, elsewhere to rounding.

Where a change of results is meant, `python tests/golden/runs.py write tests/golden/golden.json` records the new ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from golden.runs import RUNS, Result, do, facts, made, make_world, problems

RECORDED = json.loads(Path(__file__).with_name("golden.json").read_text())
SAME_MACHINE = facts() == RECORDED["facts"]
# allowed on other machines: margins are differences of 40 nats in float32, and where two rows change places a rank
# correlation jumps
ROUNDING: dict[str, Any] = {"rtol": 1e-4, "atol": 3e-5, "but": ("correlation",)}
# likewise in bfloat16, where a single row is off by tenths of a nat, what ranks rows jumps, and other tokens are drawn
DRAWN = tuple(f"evaluations {key}" for key in ("tokens", "ended", "repeated", "kl", "start_mean_logp"))
COARSE: dict[str, Any] = {"rtol": 5e-2, "atol": 0.1, "but": ("accuracy", "correlation", "evaluation_rows", *DRAWN)}

Computed = Callable[[str], Result]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and the rows."""
    return make_world(tmp_path_factory.mktemp("golden") / "world")


@pytest.fixture(scope="module")
def computed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Computed:
    """What a run computes here and now; each is done once."""
    return cache(lambda name: do(name, world, tmp_path_factory.mktemp(name)))


def test_the_runs_are_those_on_record(world: Path) -> None:
    """The same names, and the same model and rows, without which no number below can be the same."""
    assert list(RECORDED["runs"]) == list(RUNS)
    assert made(world) == RECORDED["made"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_computes_what_it_did(computed: Computed, name: str) -> None:
    allowed = COARSE if RUNS[name].coarse else ROUNDING
    assert problems(computed(name), RECORDED["runs"][name], exact=SAME_MACHINE, **allowed) == []


@pytest.mark.parametrize("name", [name for name, golden in RUNS.items() if golden.equals])
def test_a_resumed_run_is_the_one_that_was_never_interrupted(computed: Computed, name: str) -> None:
    """To the last bit on any machine."""
    assert problems(computed(name), computed(RUNS[name].equals), exact=True) == []

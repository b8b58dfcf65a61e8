"""What the benchmarks compare must be the same work, and what they quote must have been measured."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from preftune.pack.plan import make_plan, prefix_order

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import common
import table

ROOT = Path(__file__).parents[2]
SCRIPTS = [path for folder in ("bench", "examples", "docs") for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_names_what_there_is(path: Path) -> None:
    """Imports, and attributes of imported modules. Most scripts take hours, so that no test runs them."""
    tree, modules = ast.parse(path.read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("preftune"):
            imported = __import__(str(node.module), fromlist=[alias.name for alias in node.names])
            assert [alias.name for alias in node.names if not hasattr(imported, alias.name)] == []
            modules |= {alias.asname or alias.name: getattr(imported, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            assert not isinstance(module, ModuleType) or hasattr(module, node.attr), f"{node.value.id}.{node.attr}"


def test_the_peer_meets_the_rows_of_every_step_of_our_plan() -> None:
    rows = common.made_rows("hh", 512, 20)
    sizes = [sum(len(text.split()) for text in row.values()) for row in rows]
    sort_key = prefix_order([np.array([int(w[1:]) for w in row["prompt"].split()]) for row in rows])
    plan = make_plan(sizes, rows=common.PAIRS, tokens=700, seed=3, sort_key=sort_key)
    theirs = common.planned(rows, 3)
    for at, step in enumerate(plan.steps):
        ours = {rows[i]["prompt"] for pack in step.packs for i in pack}
        assert {row["prompt"] for row in theirs[at * common.PAIRS : (at + 1) * common.PAIRS]} == ours
    assert len(plan.steps) == 3


def test_only_as_many_steps_as_asked() -> None:
    rows = common.made_rows("hh", 512, 40)
    assert common.planned(rows, 0, steps=2) == common.planned(rows, 0)[: 2 * common.PAIRS]


@pytest.mark.parametrize("regime", common.LENGTHS)
def test_rows_have_the_lengths_of_their_regime_and_fit(regime: str) -> None:
    rows = common.made_rows(regime, 8192, 400)
    prompt, response = common.LENGTHS[regime]
    assert np.mean([len(row["prompt"].split()) for row in rows]) == pytest.approx(prompt, rel=0.12)
    assert np.mean([len(row["chosen"].split()) for row in rows]) == pytest.approx(response, rel=0.15)
    assert max(len((row["prompt"] + row["chosen"]).split()) for row in rows) < common.MAX_TOKENS


def test_hashed_words_stay_inside_the_vocabulary_and_repeat() -> None:
    words = common.hashed("one two, one", 64).split()
    assert len(words) == 4
    assert words[0] == words[3] != words[1]
    assert all(3 <= int(word[1:]) < 64 for word in words)


def test_ratios_pair_the_same_updates_and_leave_out_the_first() -> None:
    ours = [{"cpu": c} for c in (9.0, 1.0, 2.0)]
    peer = [{"cpu": c} for c in (1.0, 4.0, 6.0)]
    assert common.ratios(peer, ours) == [4.0, 3.0]
    assert common.ratios(peer[:2], ours) == [4.0]


def test_the_table_shows_what_was_measured_and_no_quick_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    cell = {"regime": "hh", "vocab": 8192, "speed": {"best": 2.5, "shipped": 8.25}}
    about = {"date": "2030-01-02", "device": "a device", "threads": 1, "versions": {"torch": "9"}}
    (tmp_path / "speed-float32.json").write_text(json.dumps({**about, "cells": [cell]}))
    (tmp_path / "memory-quick.json").write_text(json.dumps({**about, "date": "1999-01-01", "cells": []}))
    told = table.render()
    assert "8.2x / 2.5x" in told
    assert "2030-01-02, a device" in told
    assert "UKP" not in told
    assert "1999" not in told

"""`preftune score` asks the reference for all that it judges, whatever a run on these rows would have asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from several import on_ranks

from preftune.config.run import Run
from preftune.run.score import score

CASES = [{"optim__steps": 1, "optim__epochs": None}, {"objective__name": "kto"}, {"objective__name": "bco"}]


@pytest.mark.parametrize("keys", CASES, ids=str)
def test_all_rows_are_scored(run_of: Callable[..., Run], keys: dict[str, object]) -> None:
    found = score(run_of(**keys, data__evaluate=None))
    assert found["rows"] == 50
    assert found["loss"] is not None


def test_ranks_without_a_whole_model_score_what_one_process_does(run_of: Callable[..., Run], tmp_path: Path) -> None:
    keys = {"data__evaluate": None, "reference__store": "memory", "batch__tokens": 60}
    one = score(run_of(**keys), tmp_path / "one")
    cut = run_of(**keys, ranks__shard="layer")
    assert len(on_ranks(3, tmp_path / "on", lambda _: score(cut, tmp_path / "cut"))) == 3
    ours, theirs = (list(map(json.loads, (tmp_path / name).read_text().splitlines())) for name in ("one", "cut"))
    assert [row["chosen"]["logp"] for row in ours] == pytest.approx([row["chosen"]["logp"] for row in theirs], rel=1e-5)
    assert len(ours) == one["rows"] == 50

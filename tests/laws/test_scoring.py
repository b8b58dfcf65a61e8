"""`preftune score` asks the reference for all that it judges, whatever a run on these rows would have asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from preftune.config.run import Run
from preftune.run.score import score

CASES = [{"optim__steps": 1, "optim__epochs": None}, {"objective__name": "kto"}, {"objective__name": "bco"}]


@pytest.mark.parametrize("keys", CASES, ids=str)
def test_all_rows_are_scored(run_of: Callable[..., Run], keys: dict[str, object]) -> None:
    found = score(run_of(**keys, data__evaluate=None))
    assert found["rows"] == 50
    assert found["loss"] is not None

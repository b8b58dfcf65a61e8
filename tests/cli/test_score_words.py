"""The words of `preftune score --reward`: a file of rows may stand by itself, and nothing is said twice."""

from __future__ import annotations

import pytest

from preftune.cli.score import words_of
from preftune.config.load import load
from preftune.errors import UserError
from preftune.objective import Reward


def test_a_file_of_rows_may_stand_by_itself() -> None:
    words = words_of(["rows.jsonl", "data.max_tokens=64"], "runs/rm/model")
    run = load(None, words)
    assert (run.data.train, run.model.path, run.objective) == ("rows.jsonl", "runs/rm/model", Reward())
    assert run.data.max_tokens == 64
    assert words_of(["run.toml"], "m")[0] == "run.toml"


def test_what_the_flag_says_is_not_said_twice() -> None:
    for word in ("objective=dpo", "model.path=other"):
        with pytest.raises(UserError, match="cannot stand beside --reward"):
            words_of([word, "rows.jsonl"], "m")
    with pytest.raises(UserError, match="second file of rows"):
        words_of(["a.jsonl", "b.jsonl"], "m")

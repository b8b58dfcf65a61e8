"""A record of an older build, which has fewer keys, is resumed as the run that it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import save_model, save_pairs

from preftune.config.load import load
from preftune.errors import UserError
from preftune.run.identity import compare, identity, not_by_default
from preftune.run.train import train

WORDS = ["objective=gspo", "reward.verify=exact"]


def test_a_key_that_was_not_there_was_as_its_default_says(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    now = identity(load(None, WORDS), {"model": "abc"})
    path.write_text(
        json.dumps({key: value for key, value in now.items() if key not in ("objective.norm", "save.best")})
    )
    assert compare(path, now, ()) == []
    other = identity(load(None, [*WORDS, "save.best=true", "objective.norm=token"]), {"model": "abc"})
    with pytest.raises(UserError, match=r"objective\.norm: was sequence -> token\.\nsave\.best: was False -> True\."):
        compare(path, other, ())
    path.write_text(json.dumps({**now, "objective.clip": None}))
    with pytest.raises(UserError, match=r"objective\.clip: was nothing -> 0\.0003"):
        compare(path, now, ())


@pytest.mark.parametrize("words", [["adapter.rank=16"], ["reference=stored"], ["aggregate=mean"]])
def test_a_table_that_was_none_was_none(words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    before = load(None, ["objective=nll"])
    path.write_text(json.dumps(identity(before, {})))
    with pytest.raises(UserError, match="another run is in this folder"):
        compare(path, identity(load(None, ["objective=nll", *words]), {}), ())


def test_what_no_default_says_is_in_a_phase() -> None:
    assert not_by_default(identity(load(None, WORDS), {"model": "abc"})) == {
        "model": "abc", "objective.name": "gspo", "aggregate.name": "sum", "reward.verify": "exact"
    }  # fmt: skip


def test_a_run_of_an_older_build_goes_on(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    save_pairs(tmp_path / "pairs.jsonl", 16)
    words = [f"model.path={tmp_path / 'model'}", f"data.train={tmp_path / 'pairs.jsonl'}", "reference.store=memory",
             f"out={tmp_path / 'run'}", "batch.rows=8", "optim.steps=1"]  # fmt: skip
    out = train(load(None, words))
    recorded = json.loads((out / "identity.json").read_text())
    (out / "identity.json").write_text(json.dumps({key: v for key, v in recorded.items() if key != "save.best"}))
    train(load(None, words), resume=True)
    assert json.loads((out / "identity.json").read_text()) == recorded

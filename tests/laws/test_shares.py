"""A share of 2 is the file named twice, and one of a half is a file of these rows, to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from making import save_pairs

from preftune.config.run import Run
from preftune.errors import UserError
from preftune.record.reader import Record
from preftune.rows.account import Counts
from preftune.rows.shares import SHARE
from preftune.rows.split import read_rows
from preftune.run.train import train

Make = Callable[..., Run]


def losses(out: Path) -> list[object]:
    return [step["loss"] for step in Record.open(out).steps]


def counts(out: Path) -> Counts:
    account = Record.open(out).data.train
    assert account is not None
    return account


def test_twice_is_as_named_twice(run_of: Make, tmp_path: Path, world: Path) -> None:
    save_pairs(tmp_path / "other.jsonl", 10, seed=5)
    first, second = str(world / "pairs.jsonl"), str(tmp_path / "other.jsonl")
    shared = train(run_of(data__train=[second, first], data__shares=[2, 1], out=str(tmp_path / "shared"),
                          optim__epochs=1))  # fmt: skip
    assert len(losses(shared)) == -(-70 // 8)
    assert counts(shared).kept == 60
    assert counts(shared).times == pytest.approx(70 / 60)
    once = train(run_of(data__train=[second, second], out=str(tmp_path / "once"), optim__epochs=1))
    twice = train(run_of(data__train=second, data__shares=[2], out=str(tmp_path / "twice"), optim__epochs=1))
    assert losses(once) == losses(twice)
    assert (once / "model" / "model.safetensors").read_bytes() == (twice / "model" / "model.safetensors").read_bytes()


def test_a_half_is_as_a_file_of_these_rows(run_of: Make, tmp_path: Path, world: Path) -> None:
    run = run_of(data__shares=[0.5], out=str(tmp_path / "half"))
    lines = (world / "pairs.jsonl").read_text().splitlines(keepends=True)
    taken = {row.place.line for row in read_rows(run.data).train}
    (tmp_path / "taken.jsonl").write_text("".join(line for n, line in enumerate(lines, 1) if n in taken))
    half, whole = train(run), train(run_of(data__train=str(tmp_path / "taken.jsonl"), out=str(tmp_path / "whole")))
    assert losses(half) == losses(whole)
    assert counts(half).skipped == {SHARE: 50 - len(taken)}
    assert counts(half).read == 50
    assert "an epoch takes" in counts(half).notes[0]


def test_other_shares_are_another_run(run_of: Make, tmp_path: Path) -> None:
    out = train(run_of(data__shares=[0.5], optim__epochs=1))
    with pytest.raises(UserError, match=r"data.shares: was \[0.5\] -> \[0.25\]"):
        train(run_of(data__shares=[0.25], optim__epochs=1), resume=True)
    assert train(run_of(data__shares=[0.5], optim__epochs=1), resume=True) == out
    assert json.loads((out / "identity.json").read_text())["data.shares"] == [0.5]

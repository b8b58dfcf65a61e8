"""A reference that follows the policy, and does so across a resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from recorded import lines

from preftune.config.run import Run
from preftune.files import read_lines
from preftune.run.train import train


def moving(run_of: Callable[..., Run], **keys: object) -> Run:
    return run_of(reference__kind="moving", reference__store=msgspec.UNSET, data__evaluate=None, **keys)


def test_a_reference_copied_at_each_update_leaves_no_margin(run_of: Callable[..., Run]) -> None:
    out = train(moving(run_of, reference__alpha=1.0, reference__update_every=1, optim__epochs=1))
    losses = [line["loss"] for line in read_lines(out / "metrics.jsonl")]
    assert losses == pytest.approx([math.log(2)] * len(losses), abs=1e-5)


def test_it_goes_on_from_a_checkpoint(run_of: Callable[..., Run], tmp_path: Path) -> None:
    keys = {
        "reference__alpha": 0.5,
        "reference__update_every": 2,
        "save__every": 3,
        "optim__steps": 6,
        "optim__epochs": None,
    }
    whole = train(moving(run_of, out=str(tmp_path / "whole"), **keys))
    cut = train(moving(run_of, out=str(tmp_path / "cut"), **keys))
    (cut / "checkpoints" / "step-00000006").rename(tmp_path / "lost")
    train(moving(run_of, out=str(tmp_path / "cut"), **keys), resume=True)
    assert lines(whole) == lines(cut)

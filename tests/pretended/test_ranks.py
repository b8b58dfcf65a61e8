"""Ranks on pretended GPUs: each rank takes its device for the only one of its machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from several import on_ranks
from small_run import keys_of, run_of, world

from preftune.config.run import Run
from preftune.files import read_lines
from preftune.model.config import Ranks
from preftune.run.train import train

__all__ = ["keys_of", "run_of", "world"]
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("shard", ["none", "step", "layer"])
def test_two_are_one(shard: str, run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.ops.pretended, "waits"):
        pytest.skip("the GPU is a real one, which two ranks cannot share")
    keys = {"optim__epochs": None, "optim__steps": 3, "evaluate__samples": 0, "model__compute": "float32"}
    monkeypatch.setenv("LOCAL_RANK", "0")
    losses = []
    for count, ranks in ((2, Ranks(shard=shard)), (1, Ranks())):  # type: ignore[arg-type]
        ours = replace(run_of(device="cuda", **keys), ranks=ranks, out=str(tmp_path / str(count)))
        # forked, and this process makes no gradient, after which it could not be
        where = on_ranks(count, tmp_path / f"on {count}", lambda _, ours=ours: str(train(ours)))[0]
        losses.append([line["loss"] for line in read_lines(Path(where) / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)

"""Whole runs on a GPU, held to the same runs on a CPU: rows, reference, updates, draws, record and export.

`pytest -m gpu tests/gpu`. The pretended GPU of tests/pretended goes through them in `make test`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from killed import AN_UPDATE, Killed, killed_at
from msgspec import UNSET
from msgspec.structs import replace
from safetensors.torch import load_file

from preftune import objective as o
from preftune.config.run import Run
from preftune.files import read_lines
from preftune.run.train import train

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("device")]
SHORT = {"optim__epochs": None, "optim__steps": 4, "evaluate__samples": 0}
FP32 = {"model__compute": "float32", **SHORT}
DRAWS = {"rollout__responses": 3, "rollout__tasks": 4, "rollout__max_tokens": 5, "batch__rows": 4}


def distinct(prompt: str, responses: Sequence[str], answer: str | None) -> list[float]:
    """How many different words a response has."""
    return [float(len(set(response.split()))) for response in responses]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_lines(out / "metrics.jsonl")]


def on_both(run: Run, tmp_path: Path) -> list[Path]:
    """The records of a run on the CPU and on the GPU."""
    return [train(replace(run, device=name, out=str(tmp_path / name))) for name in ("cpu", "cuda")]  # pyright: ignore


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"reference__kind": "moving", "reference__update_every": 2, "reference__store": UNSET,
         "model__checkpointing": True},
        {"objective__name": "kto", "optim__state": "int8"},
        {"adapter__rank": 4},
        {"objective__name": "reward", "reference__kind": "none", "reference__store": UNSET},
    ],
    ids=["dpo", "moving", "int8", "adapter", "reward"],
)  # fmt: skip
def test_a_run_is_that_of_a_cpu(keys: dict[str, object], run_of: Callable[..., Run], tmp_path: Path) -> None:
    there, here = on_both(run_of(**FP32 | keys), tmp_path)
    assert losses(here) == pytest.approx(losses(there), abs=1e-3)
    weights, ours = (load_file(next((out / "model").glob("*model.safetensors"))) for out in (there, here))
    assert weights.keys() == ours.keys()
    for name, weight in weights.items():
        assert torch.allclose(ours[name].float(), weight.float(), atol=2e-3), name


@pytest.mark.parametrize("objective", [o.RLOO(), o.PPO(), o.DPO()], ids=lambda objective: type(objective).__name__)
def test_a_run_that_draws_is_that_of_a_cpu(objective: object, run_of: Callable[..., Run], tmp_path: Path) -> None:
    run = replace(run_of(**FP32 | DRAWS), objective=objective, reward=distinct)
    there, here = on_both(run, tmp_path)
    first = [next(iter(read_lines(out / "phases.jsonl"))) for out in (there, here)]
    assert first[1]["score"] == pytest.approx(first[0]["score"], abs=0.3)  # a draw near a tie may be another token
    assert losses(here)[0] == pytest.approx(losses(there)[0], abs=0.3)


@pytest.mark.parametrize("keys", [{}, {"model__weights": "bfloat16", "optim__state": "int8"}, {"adapter__rank": 4}])
def test_half_precision_is_the_usual(keys: dict[str, object], run_of: Callable[..., Run], tmp_path: Path) -> None:
    out = train(run_of(**SHORT | {"device": "cuda"} | keys))
    exact = train(replace(run_of(**FP32), device="cpu", out=str(tmp_path / "cpu")))
    assert losses(out)[0] == pytest.approx(losses(exact)[0], abs=0.05)
    assert all(line["grad_norm"] > 0 for line in read_lines(out / "metrics.jsonl"))


def test_a_killed_run_goes_on(run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bits on one device, but for attention's gradient by queries, which atomic operations add."""
    run = run_of(**FP32 | {"device": "cuda", "save__every": 1})
    whole = train(replace(run, out=str(tmp_path / "whole")))
    with pytest.raises(Killed), killed_at(3, monkeypatch, AN_UPDATE):
        train(run)
    assert losses(train(run, resume=True)) == pytest.approx(losses(whole), abs=1e-5)

"""What `auto` stands for depends on the device alone, is recorded as what it became, and stays so in a resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from making import save_model, save_pairs
from recorded import events

from preftune import events as events_of
from preftune.config.load import load
from preftune.config.resolve import resolve, with_rounding
from preftune.config.run import Run
from preftune.distributed import SINGLE_PROCESS
from preftune.errors import UserError
from preftune.run.models import with_precision
from preftune.run.resume import with_recorded_keys
from preftune.run.train import train


@pytest.fixture
def notes() -> Iterator[list[str]]:
    said: list[str] = []
    with events_of.listening(lambda event: said.append(event.text) if isinstance(event, events_of.Note) else None):
        yield said


@pytest.mark.parametrize(
    ("device", "supported", "compute"),
    [("cpu", True, "float32"), ("cuda", True, "bfloat16"), ("cuda", False, "float32")],
)
def test_auto_is_bfloat16_where_a_gpu_has_it(
    device: str, supported: bool, compute: str, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: asked.append(emulated) or supported)
    run = with_precision(load(None), torch.device(device))
    assert (run.model.weights, run.model.compute) == ("float32", compute)
    assert asked == ([False] if device == "cuda" else [])  # a card that only emulates it is slower so
    assert bool(notes) == (compute == "bfloat16")
    explicit = load(None, ["model.compute=float32", "model.weights=bfloat16"])
    assert with_precision(explicit, torch.device(device)).model == explicit.model


def test_the_record_says_what_it_became_and_a_resume_takes_that(tmp_path: Path) -> None:
    save_model(tmp_path / "m")
    words = [f"model.path={tmp_path / 'm'}", f"data.train={save_pairs(tmp_path / 'p.jsonl', 12)}", "optim.steps=2",
             f"out={tmp_path / 'run'}", "reference.store=memory", "device=cpu"]  # fmt: skip
    run: Run = load(None, words)
    out = train(run)
    identity = json.loads((out / "identity.json").read_text())
    assert (identity["model.compute"], identity["model.weights"]) == ("float32", "float32")
    assert load(out / "run.toml").model.compute == "float32"
    assert not events(out, "rounding")
    recorded = {**identity, "model.compute": "bfloat16", "batch.tokens": 777}
    (out / "identity.json").write_text(json.dumps(recorded))
    went_on = with_recorded_keys(run, out, SINGLE_PROCESS)
    assert (went_on.model.compute, went_on.model.weights, went_on.batch.tokens) == ("bfloat16", "float32", 777)
    fixed = load(None, [*words, "model.compute=float32", "batch.tokens=512"])
    assert with_recorded_keys(fixed, out, SINGLE_PROCESS).model.compute == "float32"
    assert with_recorded_keys(fixed, out, SINGLE_PROCESS).batch.tokens == 512


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_weights_under_an_adapter_are_in_the_type_of_the_products(
    device: str, compute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: True)
    run = load(None, [f"model.compute={compute}", "adapter.rank=4"])
    assert with_precision(run, torch.device(device)).model.weights == compute


@pytest.mark.parametrize(("part", "rounding"), [("", "nearest"), ('adapter.train_also=["lm_head"]', "stochastic")])
def test_parts_that_learn_whole_in_bfloat16_are_rounded_at_random_and_the_run_says_so(part: str, rounding: str) -> None:
    run = resolve(load(None, ["model.compute=bfloat16", "adapter.rank=4", *part.split()]))
    assert with_rounding(with_precision(run, torch.device("cpu"))).optim.rounding == rounding
    named = resolve(load(None, ["model.compute=bfloat16", "adapter.rank=4", "optim.rounding=nearest", *part.split()]))
    with pytest.raises(UserError, match="rounded away") if part else nullcontext():
        with_rounding(with_precision(named, torch.device("cpu")))

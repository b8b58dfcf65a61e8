"""Weights, moments and what is exported are finite, or the run ends with code 3 and keeps its last checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from preftune.config.run import Run
from preftune.errors import NON_FINITE, UserError
from preftune.files import read_lines
from preftune.run import train as train_module
from preftune.run.train import train
from preftune.training.optimizer import FusedAdamW


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").glob("*"))


def finite(out: Path) -> bool:
    files = [*out.glob("checkpoints/*/*.safetensors"), *out.glob("model/*.safetensors")]
    return all(bool(torch.isfinite(tensor).all()) for file in files for tensor in load_file(file).values())


@pytest.mark.parametrize("keys", [{"optim__weight_decay": 1e39}, {"optim__eps": 1e-300}, {"optim__weight_decay": 1e30}])
def test_an_update_that_leaves_no_finite_weights_ends_the_run(
    keys: dict[str, float], run_of: Callable[..., Run], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="not finite") as raised:
        train(run_of(**{"data__evaluate": None, "save__every": 1, "optim__clip": 1e38, **keys}))
    assert raised.value.code == NON_FINITE
    assert any(event["event"] == "non_finite" for event in read_lines(tmp_path / "run" / "events.jsonl"))
    assert not (tmp_path / "run" / "model").exists()
    assert finite(tmp_path / "run")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_weight_that_no_row_touches_is_seen_and_the_last_checkpoints_stay(
    value: float, run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, updates = FusedAdamW.step, []

    def broken(self: FusedAdamW) -> None:
        right(self)
        updates.append(self)
        if len(updates) == 4:
            with torch.no_grad():
                self.param_groups[0]["params"][0][0, 0] = value  # the embedding of <pad>

    monkeypatch.setattr(FusedAdamW, "step", broken)
    with pytest.raises(UserError, match="update 4 left weights that are not finite") as raised:
        train(run_of(data__evaluate=None, save__every=1))
    assert raised.value.code == NON_FINITE
    assert checkpoints(tmp_path / "run") == ["step-00000002", "step-00000003"]
    assert finite(tmp_path / "run")


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_a_moment_that_is_not_finite_is_not_saved(
    key: str, run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, updates = FusedAdamW.step, []

    def broken(self: FusedAdamW) -> None:
        right(self)
        updates.append(self)
        if len(updates) == 3:
            self.state[self.param_groups[0]["params"][1]][key].view(-1)[0] = float("inf")

    monkeypatch.setattr(FusedAdamW, "step", broken)
    with pytest.raises(UserError, match=f"optimizer are no longer finite .*{key}") as raised:
        train(run_of(data__evaluate=None, save__every=1))
    assert raised.value.code == NON_FINITE
    assert checkpoints(tmp_path / "run") == ["step-00000001", "step-00000002"]


def test_a_buffer_that_is_not_finite_is_not_exported(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = train_module.finish

    def broken(prepared, state, record) -> None:
        state.weights.module.register_buffer("extra", torch.tensor([float("nan")]))
        right(prepared, state, record)

    monkeypatch.setattr(train_module, "finish", broken)
    with pytest.raises(UserError, match="extra is not finite, so no model is exported") as raised:
        train(run_of(data__evaluate=None, optim__epochs=1))
    assert raised.value.code == NON_FINITE
    assert not (tmp_path / "run" / "model").exists()

"""A checkpoint is compared with the model it is for: one that does not fit is passed over with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from making import tiny
from safetensors.torch import load_file, save_file

from preftune import files, folders
from preftune.model.weights import WholeModel
from preftune.training.checkpoint import State, load_newest, save
from preftune.training.config import Optim
from preftune.training.optimizer import adamw

Tensors = dict[str, torch.Tensor]
HEAD, FIRST = "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"


def made(seed: int, *, moving: bool = False) -> State:
    """A state after one update with made gradients."""
    weights = WholeModel(tiny(seed=seed))
    state = State(weights, adamw(weights, Optim(), seed=0), tiny(seed=seed + 9) if moving else None)
    torch.manual_seed(seed)
    for name, parameter in weights.trained().items():
        parameter.grad = None if name == HEAD else torch.randn_like(parameter)  # nothing has asked for the head yet
    state.optimizer.step()
    state.step, state.ema = 1, (0.5, None)
    return state


def bits(state: State) -> dict[str, Any]:
    tensors = {**state.weights.state(), **state.learners[""].moments()}
    reference = state.tensors.get("reference", {})
    numbers = (state.step, state.skipped, state.oom.splits, state.ema)
    return {name: t.clone() for name, t in {**tensors, **reference}.items()} | {"numbers": numbers}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = [name for name in one if name != "numbers"]
    return (
        one.keys() == other.keys()
        and one["numbers"] == other["numbers"]
        and all(torch.equal(one[n], other[n]) for n in tensors)
    )


def relisted(path: Path) -> None:
    """Give a folder the manifest that its files have now."""
    entries = {p.name: {"bytes": p.stat().st_size, "sha256": files.digest(p)} for p in path.iterdir() if p.is_file()}
    entries.pop(folders.MANIFEST, None)
    (path / folders.MANIFEST).write_text(json.dumps({"format": 1, "files": entries}))


@pytest.mark.parametrize("moving", [False, True])
def test_what_is_saved_comes_back(moving: bool, tmp_path: Path) -> None:
    state, other = made(0, moving=moving), made(1, moving=moving)
    path = save(state, tmp_path, keep=2)
    assert load_newest(other, tmp_path, steps=1, means=2) == (path, [])
    assert same(bits(state), bits(other))


def tensors_changed(name: str, change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors = load_file(path / f"{name}.safetensors")
        change(tensors)
        save_file(tensors, path / f"{name}.safetensors")

    return damage


def put(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.__setitem__(name, value(tensors[name]).contiguous())


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_text(content) and None


def numbers(**changed: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        state = json.loads((path / "state.json").read_text())
        state = {key: value for key, value in {**state, **changed}.items() if value != "absent"}
        (path / "state.json").write_text(json.dumps(state))

    return damage


def filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: t.index_fill(0, torch.tensor([0]), value) if t.dim() else torch.full_like(t, value)


def links_out(path: Path) -> None:
    (path / "weights.safetensors").rename(path.parent / "weights.safetensors")
    (path / "weights.safetensors").symlink_to(path.parent / "weights.safetensors")
    manifest = json.loads((path / folders.MANIFEST).read_text())
    del manifest["files"]["weights.safetensors"]
    (path / folders.MANIFEST).write_text(json.dumps(manifest))


LIES = {
    "NaN in the weights": tensors_changed("weights", put(FIRST, filled(float("nan")))),
    "infinity in the weights": tensors_changed("weights", put(FIRST, filled(float("inf")))),
    "weights of another type": tensors_changed("weights", put(FIRST, torch.Tensor.bfloat16)),
    "weights of another shape": tensors_changed("weights", put(FIRST, lambda t: t[:3])),
    "weights of the same size": tensors_changed("weights", put(FIRST, lambda t: t.reshape(-1))),
    "a weight less": tensors_changed("weights", lambda t: t.pop(FIRST)),
    "a weight more": tensors_changed("weights", lambda t: t.update(extra=torch.ones(1))),
    "no weights": tensors_changed("weights", dict.clear),
    "a moment of another shape": tensors_changed("optimizer", put(f"{FIRST}/exp_avg", lambda t: t.reshape(-1)[:3])),
    "a moment of another type": tensors_changed("optimizer", put(f"{FIRST}/exp_avg_sq", torch.Tensor.bfloat16)),
    "a moment less": tensors_changed("optimizer", lambda t: t.pop(f"{FIRST}/exp_avg")),
    "a moment more": tensors_changed("optimizer", lambda t: t.update({f"{FIRST}/max_exp_avg_sq": torch.ones(1)})),
    "a moment of nothing": tensors_changed("optimizer", lambda t: t.update({"nothing/exp_avg": torch.ones(1)})),
    "a moment without a name": tensors_changed("optimizer", lambda t: t.update({"exp_avg": torch.ones(1)})),
    "NaN in a moment": tensors_changed("optimizer", put(f"{FIRST}/exp_avg", filled(float("nan")))),
    "a negative second moment": tensors_changed("optimizer", put(f"{FIRST}/exp_avg_sq", filled(-1.0))),
    "a negative count": tensors_changed("optimizer", put(f"{FIRST}/step", filled(-1.0))),
    "a count of another type": tensors_changed("optimizer", put(f"{FIRST}/step", torch.Tensor.long)),
    "no numbers": text("state.json", "{}"),
    "a list": text("state.json", "[]"),
    "null": text("state.json", "null"),
    "no JSON": text("state.json", "{"),
    "deep JSON": text("state.json", "[" * 100_000),
    "no UTF-8": lambda path: (path / "state.json").write_bytes(b"\xff\xfe") and None,
    "step of another folder": numbers(step=2),
    "step below 0": numbers(step=-1),
    "step 99": numbers(step=99),
    "a step of text": numbers(step="1"),
    "a step that is true": numbers(step=True),
    "a number less": numbers(splits="absent"),
    "a number more": numbers(extra=1),
    "skipped below 0": numbers(skipped=-1),
    "halved for ever": numbers(splits=10**6),
    "means of another objective": numbers(ema=[1.0, 2.0, 3.0]),
    "means of text": numbers(ema=["x", "y"]),
    "tensors that are none": text("optimizer.safetensors", "none"),
    "a file less": lambda path: (path / "optimizer.safetensors").unlink(),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_checkpoint_whose_manifest_is_right_is_not_believed(lie: str, tmp_path: Path) -> None:
    good, state = made(0), made(1)
    older = save(good, tmp_path, keep=2)
    good.step = 2
    newer = save(good, tmp_path, keep=2)
    numbers(step=2)(newer)
    LIES[lie](older if lie == "step of another folder" else newer)
    relisted(older), relisted(newer)
    if lie == "step of another folder":
        files.delete(newer)
    path, passed_over = load_newest(state, tmp_path, steps=2, means=2)
    assert len(passed_over) == 1
    assert path == (None if lie == "step of another folder" else older)
    reason = passed_over[0]
    assert reason.startswith("step-0000000")
    assert len(reason) > len("step-00000002: x.json: ")
    assert "\n" not in reason


def test_a_checkpoint_that_does_not_fit_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    path, state = save(made(0), tmp_path, keep=2), made(1)
    before = bits(state)
    numbers(step=7)(path)
    relisted(path)
    assert load_newest(state, tmp_path, steps=9, means=2)[0] is None
    assert same(before, bits(state))


def test_a_step_beyond_the_run_a_link_and_a_missing_reference_are_passed_over(tmp_path: Path) -> None:
    path = save(made(0), tmp_path, keep=2)
    assert "beyond the 0 of the run" in load_newest(made(1), tmp_path, steps=0, means=2)[1][0]
    assert (
        "reference.safetensors: not in the manifest"
        in load_newest(made(1, moving=True), tmp_path, steps=1, means=2)[1][0]
    )
    links_out(path)
    assert "weights.safetensors: not in the manifest" in load_newest(made(1), tmp_path, steps=1, means=2)[1][0]


@pytest.mark.parametrize("part", ["weights", "optimizer", "reference"])
def test_what_is_not_finite_is_not_saved_and_nothing_is_rotated_away(part: str, tmp_path: Path) -> None:
    from preftune.errors import NON_FINITE, UserError

    state = made(0, moving=True)
    kept = save(state, tmp_path, keep=1)
    tensors = {**state.tensors, "optimizer": state.learners[""].moments()}
    next(iter(tensors[part].values())).view(-1)[0] = float("nan")
    state.step = 2
    with pytest.raises(UserError, match=f"the {part} are no longer finite") as raised:
        save(state, tmp_path, keep=1)
    assert raised.value.code == NON_FINITE
    assert [*tmp_path.iterdir()] == [kept]

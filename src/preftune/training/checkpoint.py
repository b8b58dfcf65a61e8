"""What a run carries from step to step, and its checkpoints: whole or not at all, and the newest valid one wins."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from msgspec import Meta, Struct
from torch import Tensor

from preftune import files, folders
from preftune.distributed import SINGLE_PROCESS, Distributed
from preftune.errors import IO, NON_FINITE, UserError, third_party_message
from preftune.model.weights import Weights, local
from preftune.pack.oom import OomRetry
from preftune.record.writer import CHECKPOINT_FILES
from preftune.training import tensor_files
from preftune.training.learner import Learner
from preftune.training.optimizer import Moment, Optimizer

PREFIX = "step-"
MAX_SPLITS = 64  # no pack can be cut in two so often


@dataclass
class State:
    """The one thing that changes in a run. step: updates done; skipped: updates in a row that were not finite;
    reference: the reference's model where it moves; ema: running means that the loss follows (`Loss.ema`); oom: how
    often packs are cut in two because memory ran out; value: the value model of PPO; root: the folder of all its
    checkpoints."""

    weights: Weights
    optimizer: Optimizer
    reference: torch.nn.Module | None = None
    step: int = 0
    skipped: int = 0
    ema: tuple[float | None, ...] = ()
    oom: OomRetry = field(default_factory=OomRetry)
    value: Learner | None = None
    root: Path = Path()

    @property
    def learners(self) -> dict[str, Learner]:
        """All that is trained, by what its files' names begin with."""
        return {"": Learner(self.weights, self.optimizer)} | ({} if self.value is None else {"value_": self.value})

    @property
    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All that a checkpoint holds but moments, by the name of the file; not copies."""
        parts = {f"{begin}weights": learner.weights.state() for begin, learner in self.learners.items()}
        if self.reference is not None:
            parts["reference"] = {name: parameter.detach() for name, parameter in self.reference.named_parameters()}
        return parts


def path_of(root: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return root / f"{PREFIX}{step:08d}"


def save(state: State, root: Path, keep: int, dist: Distributed = SINGLE_PROCESS, best: int = 0) -> Path:
    """Write the checkpoint of this step below `root`, then delete all but the newest `keep` valid ones.

    best: a step whose checkpoint is not deleted; dist: the ranks that write it, all of them where the weights are cut
    among them. Raises UserError, and deletes nothing, where a number is not finite or any rank cannot write.
    """
    path = path_of(root, state.step)
    tensors = state.tensors | {f"{begin}optimizer": learner.moments() for begin, learner in state.learners.items()}
    for name, part in tensors.items():
        with dist.agreed():
            if broken := not_finite(part):
                hint = "The checkpoints of before are kept. Lower optim.lr."
                raise UserError(f"the {name} are no longer finite ({broken}).", location=str(path), hint=hint,
                                code=NON_FINITE)  # fmt: skip
    numbers = _Numbers(state.step, state.skipped, state.oom.splits, state.ema)
    tensor_files.write(path, tensors, msgspec.to_builtins(numbers), dist)
    valid = [folder for folder in checkpoints_in(root) if not folders.verify(folder)] if dist.first else []
    for old in valid[keep:]:
        if old != path_of(root, best) and not set(folders.not_ours(old, CHECKPOINT_FILES)):
            files.delete(old)
    return path


class _Numbers(Struct, forbid_unknown_fields=True):
    """state.json: the numbers of a State."""

    step: Annotated[int, Meta(ge=0)]
    skipped: Annotated[int, Meta(ge=0)]
    splits: Annotated[int, Meta(ge=0, le=MAX_SPLITS)]
    ema: tuple[float | None, ...]


def assert_room(state: State, root: Path, soon_free: int = 0) -> None:
    """Raise UserError where the disk has no room for one checkpoint: now, and not after hours of work.

    soon_free: bytes of what is deleted before the first one.
    """
    needed = sum(tensor.nbytes for tensors in state.tensors.values() for tensor in tensors.values())
    needed += sum(learner.moment_bytes for learner in state.learners.values())
    free = files.free(root) + soon_free
    if free < needed:  # a tensor that is cut among ranks says how many bytes it has in all
        raise UserError(f"a checkpoint takes {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free here.",
                        location=str(root), hint="Make room, or choose another `out`.", code=IO)  # fmt: skip


def load_newest(state: State, root: Path, *, steps: int, means: int) -> tuple[Path | None, list[str]]:
    """Put the newest checkpoint that fits into the state. Returns its folder, and why each newer one was passed over.

    steps: updates of the whole run; means: running means that its loss may follow. Where no checkpoint fits, the state
    has not changed.
    """
    passed_over = []
    for path in checkpoints_in(root):
        reason = load(state, path, steps, means)
        if not reason:
            return path, passed_over
        passed_over.append(f"{path.name}: {reason}")
    return None, passed_over


def load(state: State, path: Path, steps: int, means: int) -> str:
    """Put a checkpoint's numbers into a state made for the same model, or return why it is damaged or does not fit.

    A manifest says only that a file is as it was written, so every tensor and number is compared with what the model
    and its optimizer have.
    """
    present = state.tensors
    expected: dict[str, Mapping[str, Tensor | Moment]] = dict(present)
    cut_as = {f"{begin}optimizer": learner.weights.trained() for begin, learner in state.learners.items()}
    like: dict[str, Mapping[str, Tensor]] = {**present, **cut_as}
    parts = _read(path, like)
    if isinstance(parts, str):
        return parts
    numbers, tensors = parts
    for begin, learner in state.learners.items():
        expected[f"{begin}optimizer"] = learner.expected_moments(tensors[f"{begin}optimizer"])
    differences = {part: _unlike(tensors[part], expected[part]) for part in expected}
    if part := next((part for part, difference in differences.items() if difference), ""):
        return f"{part}.safetensors: {differences[part]}"
    if problem := _wrong_number(numbers, path, steps, means):
        return f"state.json: {problem}"
    for part in present:
        _put(present[part], tensors[part])
    for begin, learner in state.learners.items():
        learner.load_moments(tensors[f"{begin}optimizer"])
    state.step, state.skipped, state.oom.splits, state.ema = msgspec.structs.astuple(numbers)
    return ""


def load_weights(weights: Weights, path: Path, part: str = "weights") -> str:
    """Put a checkpoint's weights alone into those of the same model, or return why it is damaged or does not fit.

    part: which of its weights, as the keys of `State.tensors` name them.
    """
    present = weights.state()
    parts = _read(path, {part: present})
    if isinstance(parts, str):
        return parts
    _, tensors = parts
    if difference := _unlike(tensors[part], present):
        return f"{part}.safetensors: {difference}"
    _put(present, tensors[part])
    return ""


def _read(path: Path, like: Mapping[str, Mapping[str, Tensor]]) -> tuple[_Numbers, dict[str, dict[str, Tensor]]] | str:
    """The numbers and these parts of a checkpoint, or why it is damaged. like: tensors that are cut in the same way."""
    if damage := folders.verify(path):
        return damage
    try:
        listed = json.loads((path / folders.MANIFEST).read_text())["files"].keys()
        names = {part: tensor_files.files_of(part, listed) for part in like}
        absent = [f"{part}.safetensors" for part in names if not names[part]]
        if absent := min([*absent, *{"state.json"} - listed], default=""):
            return f"{absent}: not in the manifest"
        numbers = msgspec.json.decode((path / "state.json").read_bytes(), type=_Numbers)
        return numbers, {part: tensor_files.read([path / name for name in names[part]], like[part]) for part in like}
    except Exception as error:  # safetensors has a class of its own
        return third_party_message(error)


def _put(present: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in present.items():
        local(tensor).copy_(local(tensors[name]))


def _unlike(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor | Moment]) -> str:
    """What of these tensors is not as expected in name, shape, type or sign, or not finite; empty where all are."""
    for name in sorted(tensors.keys() ^ expected.keys()):
        return f"{name} is {'missing' if name in expected else 'unknown'}"
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(expected[name].shape) or tensor.dtype != expected[name].dtype:
            return f"{name} has another shape or type than the model's"
    if broken := not_finite(tensors):
        return f"{broken} is not finite"
    positive = (name for name, moment in expected.items() if isinstance(moment, Moment) and not moment.signed)
    return next((f"{name} is negative" for name in positive if bool((local(tensors[name]) < 0).any())), "")


def _wrong_number(numbers: _Numbers, path: Path, steps: int, means: int) -> str:
    if numbers.step != int(path.name.removeprefix(PREFIX)) or numbers.step > steps:
        return f"step {numbers.step} is not this folder's, or beyond the {steps} of the run"
    if len(numbers.ema) not in (0, means) or any(mean is not None and not math.isfinite(mean) for mean in numbers.ema):
        return "its running means are not those of this objective"
    return ""


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Name of a tensor that holds NaN or infinity, or an empty string."""
    return next((name for name, tensor in tensors.items() if not bool(torch.isfinite(local(tensor)).all())), "")


def checkpoints_in(root: Path) -> list[Path]:
    """Checkpoint folders below root, newest first; other names are not ours and are left alone."""
    numbered = [p for p in root.glob(f"{PREFIX}*") if p.is_dir() and p.name.removeprefix(PREFIX).isdecimal()]
    return sorted(numbered, key=lambda p: int(p.name.removeprefix(PREFIX)), reverse=True)

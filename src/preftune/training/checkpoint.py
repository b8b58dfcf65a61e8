"""What a run carries from step to step, and its checkpoints: whole or not at all, and the newest valid one wins."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from preftune import files
from preftune.distributed import Distributed
from preftune.errors import CORRUPT, UserError
from preftune.model.weights import Weights
from preftune.pack.oom import OomRetry

PREFIX = "step-"


@dataclass
class State:
    """The one thing that changes in a run. step: updates done; skipped: updates in a row that were not finite;
    reference: the reference's model where it moves; ema: running means that the loss follows (`Loss.ema`); oom: how
    often packs are cut in two because memory ran out."""

    weights: Weights
    optimizer: torch.optim.Optimizer
    reference: torch.nn.Module | None = None
    step: int = 0
    skipped: int = 0
    ema: tuple[float | None, ...] = ()
    oom: OomRetry = field(default_factory=OomRetry)


def save(state: State, root: Path, keep: int) -> Path:
    """Write the checkpoint of this step below `root`, then delete all but the newest `keep` valid ones."""
    path = root / f"{PREFIX}{state.step:08d}"
    moments = {
        f"{name}/{key}": value
        for name, parameter in state.weights.trained().items()
        for key, value in state.optimizer.state[parameter].items()
    }
    with files.folder(path) as folder:
        folder.tensors("weights.safetensors", state.weights.state())
        folder.tensors("optimizer.safetensors", moments)
        if state.reference is not None:
            folder.tensors("reference.safetensors", {n: p.detach() for n, p in state.reference.named_parameters()})
        numbers = {"step": state.step, "skipped": state.skipped, "splits": state.oom.splits, "ema": state.ema}
        folder.json("state.json", numbers)
    valid = [folder for folder in _folders(root) if not files.verify(folder)]
    for old in valid[keep:]:
        files.remove(old)
    return path


def newest(root: Path) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint, if any, and why each newer one was passed over."""
    passed_over = []
    for path in _folders(root):
        reason = files.verify(path)
        if not reason:
            return path, passed_over
        passed_over.append(f"{path.name}: {reason}")
    return None, passed_over


def load(state: State, path: Path) -> None:
    """Put a checkpoint's numbers into a state made for the same model. Raises UserError where they do not fit."""
    if wrong := state.weights.load_state(load_file(path / "weights.safetensors")):
        raise UserError(f"does not fit the model: {wrong}.", location=str(path), code=CORRUPT)
    moments = load_file(path / "optimizer.safetensors")
    for name, parameter in state.weights.trained().items():
        own = {key.rpartition("/")[2]: value for key, value in moments.items() if key.rpartition("/")[0] == name}
        state.optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in own.items()}  # fused: the count too
    if state.reference is not None:
        reference = load_file(path / "reference.safetensors")
        with torch.no_grad():
            for name, parameter in state.reference.named_parameters():
                parameter.copy_(reference[name])
    numbers: Mapping[str, Any] = json.loads((path / "state.json").read_text())
    state.step, state.skipped, state.oom.splits = numbers["step"], numbers["skipped"], numbers["splits"]
    state.ema = tuple(numbers["ema"])


def broadcast(state: State, dist: Distributed) -> None:
    """Give every rank the state of rank 0, which alone reads checkpoints."""
    if dist.world_size == 1:
        return
    state.step, state.skipped = map(dist.broadcast_int, (state.step, state.skipped))
    state.oom.splits = dist.broadcast_int(state.oom.splits)
    ema = torch.full((dist.broadcast_int(len(state.ema)),), torch.nan, dtype=torch.float64)
    for index, mean in enumerate(state.ema):
        ema[index] = torch.nan if mean is None else mean
    dist.broadcast([ema])
    state.ema = tuple(None if mean != mean else mean for mean in ema.tolist())
    if state.step == 0:  # before the first update all have loaded the same weights
        return
    parameters = list(state.weights.trained().values())
    has_moments = torch.tensor([int(dist.first and bool(state.optimizer.state.get(p))) for p in parameters])
    for parameter in itertools.compress(parameters, dist.sum(has_moments).tolist()):
        if not dist.first:
            moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            state.optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
        dist.broadcast(value for _, value in sorted(state.optimizer.state[parameter].items()))
    for module in (state.weights.module, state.reference):
        dist.broadcast(p.detach() for p in (module.parameters() if module is not None else ()))


def has_drifted(state: State, dist: Distributed) -> bool:
    """Whether the trained weights of some rank are other bits than those of another, as they must never be."""
    if dist.world_size == 1:
        return False
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = [p.detach().contiguous().view(words[p.element_size()]) for p in state.weights.trained().values()]
    return not all(dist.all_equal(torch.stack([b.sum(dtype=torch.int64) for b in bits]).tolist()))


def _folders(root: Path) -> list[Path]:
    """Checkpoint folders below root, newest first; other names are not ours and are left alone."""
    folders = [p for p in root.glob(f"{PREFIX}*") if p.is_dir() and p.name.removeprefix(PREFIX).isdigit()]
    return sorted(folders, key=lambda p: int(p.name.removeprefix(PREFIX)), reverse=True)

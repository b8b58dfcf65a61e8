"""What a run carries from step to step, and its checkpoints: whole or not at all, newest valid wins."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from preftune import files
from preftune.distributed import Distributed
from preftune.errors import CORRUPT, UserError

PREFIX = "step-"


@dataclass
class State:
    """The one thing that changes in a run. step: updates done; skipped: updates in a row that were not finite;
    follower: the reference's model where it moves; halvings: how often packs were cut in two for want of memory;
    usual: what the objective follows (`Judge.usual`)."""

    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    follower: torch.nn.Module | None = None
    step: int = 0
    skipped: int = 0
    splits: int = 0
    ema: tuple[float | None, ...] = ()

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Every trainable parameter once, by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}


def save(state: State, root: Path, keep: int) -> Path:
    """Write the checkpoint of this step below `root`, then delete all but the newest `keep` valid ones."""
    path = root / f"{PREFIX}{state.step:08d}"
    moments = {
        f"{name}/{key}": value
        for name, parameter in state.trained().items()
        for key, value in state.optimizer.state[parameter].items()
    }
    with files.folder(path) as folder:
        folder.tensors("weights.safetensors", dict(_detached(state.module, trained=True)))
        folder.tensors("optimizer.safetensors", moments)
        if state.follower is not None:
            folder.tensors("reference.safetensors", dict(_detached(state.follower)))
        told = {"step": state.step, "skipped": state.skipped, "halvings": state.splits, "usual": state.ema}
        folder.json("state.json", told)
    valid = [p for p in _folders(root) if not files.verify(p)]
    for old in valid[keep:]:
        files.remove(old)
    return path


def _detached(module: torch.nn.Module, trained: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, p.detach()) for name, p in module.named_parameters() if p.requires_grad or not trained)


def newest(root: Path) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint, if any, and why each newer one was passed over."""
    passed = []
    for path in _folders(root):
        why = files.verify(path)
        if not why:
            return path, passed
        passed.append(f"{path.name}: {why}")
    return None, passed


def load(state: State, path: Path) -> None:
    """Put a checkpoint's numbers into a state made for the same model. Raises UserError where they do not fit."""
    weights, moments = load_file(path / "weights.safetensors"), load_file(path / "optimizer.safetensors")
    told = json.loads((path / "state.json").read_text())
    trained = state.trained()
    wrong = next(
        (
            n
            for n in weights.keys() | trained.keys()
            if n not in weights or n not in trained or weights[n].shape != trained[n].shape
        ),
        None,
    )
    if wrong:
        raise UserError(f"does not fit the model: {wrong}.", location=str(path), code=CORRUPT)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
    for name, parameter in trained.items():
        held = {k.rpartition("/")[2]: v for k, v in moments.items() if k.rpartition("/")[0] == name}
        state.optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in held.items()}  # fused: the count too
    if state.follower is not None:
        told_reference = load_file(path / "reference.safetensors")
        with torch.no_grad():
            for name, parameter in state.follower.named_parameters():
                parameter.copy_(told_reference[name])
    state.step, state.skipped, state.splits = told["step"], told["skipped"], told["halvings"]
    state.ema = tuple(told.get("usual", ()))


def spread(state: State, dist: Distributed) -> None:
    """Give every rank the state of rank 0, which alone reads checkpoints."""
    state.step, state.skipped, state.splits = map(dist.broadcast_int, (state.step, state.skipped, state.splits))
    ema = torch.full((dist.broadcast_int(len(state.ema)),), torch.nan, dtype=torch.float64)
    for at, mean in enumerate(state.ema):
        ema[at] = torch.nan if mean is None else mean
    dist.broadcast([ema])
    state.ema = tuple(None if mean != mean else mean for mean in ema.tolist())
    if dist.world_size == 1 or state.step == 0:  # before the first update all have loaded the same weights
        return
    trained = list(state.trained().values())
    told = [int(dist.first and bool(state.optimizer.state.get(p))) for p in trained]
    for parameter in itertools.compress(trained, dist.sum(torch.tensor(told)).tolist()):
        if not dist.first:
            moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            state.optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
        dist.broadcast(value for _, value in sorted(state.optimizer.state[parameter].items()))
    for module in (state.module, state.follower):
        dist.broadcast(p.detach() for p in (module.parameters() if module is not None else ()))


def drifted(state: State, dist: Distributed) -> bool:
    """Whether the trained weights of some rank are other bits than those of another, as they must never be."""
    if dist.world_size == 1:
        return False
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = [p.detach().contiguous().view(words[p.element_size()]) for p in state.trained().values()]
    return not all(dist.all_equal(torch.stack([b.sum(dtype=torch.int64) for b in bits]).tolist()))


def _folders(root: Path) -> list[Path]:
    """Checkpoint folders below root, newest first; other names are not ours and are left alone."""
    found = [p for p in root.glob(f"{PREFIX}*") if p.is_dir() and p.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix(PREFIX)), reverse=True)

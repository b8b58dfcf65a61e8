"""What a run has written, without what no two runs share."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from preftune.files import read_lines

CLOCKS = {"seconds", "time"}


def lines(out: Path, name: str = "metrics") -> list[dict]:
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in read_lines(out / f"{name}.jsonl")]


def events(out: Path, kind: str) -> list[dict]:
    return [line for line in lines(out, "events") if line["event"] == kind]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def same(out: Path, other: Path) -> bool:
    """Whether two runs have the same record and the same weights, to the last bit."""
    ours, theirs = weights(out), weights(other)
    alike = all(lines(out, name) == lines(other, name) for name in ("metrics", "evaluations"))
    return alike and ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

"""The first minutes on a GPU: one process, guarded stages in order of what they can teach, JSON written after each.

From a checkout, on a machine where nothing can be installed:

    PYTHONPATH=src python bench/gpu.py --out FOLDER

It takes under nine minutes (`--seconds`), and a stage that fails or finds no time left costs only itself. It needs
torch, transformers and numpy; TRL is measured where it can be imported. `--device cpu --toy` goes through the same
stages in seconds, to catch slips: it has never run on a GPU, and what it prints there is to be read with that in mind.
Without a GPU it prints what FLOPs alone let one expect (`bench/estimates.py`).
"""

# ruff: noqa: E402  the path, the allocator and the stand-in for msgspec come before what they are for

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests"), str(HERE.parent / "src")]
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # as `preftune train` has it
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import no_msgspec

STAND_IN = no_msgspec.install()

import estimates
import torch
import transformers
from gpu_checks import FULL, TOY, Numbers, attention, ceilings, families, flexible, head
from gpu_speed import REGIMES, adapters, against_peer, packs

from preftune import files


class Report:
    """What the stages have measured, and the time that is left."""

    def __init__(self, path: Path, seconds: float, about: Numbers) -> None:
        self.path, self.seconds, self.stages, self.began = path, seconds, dict(about), time.monotonic()

    def stage(self, name: str, expected: float, work: Callable[[], Numbers]) -> Numbers:
        """Run a stage that may take about `expected` seconds, if there is time, and write everything down."""
        left = self.seconds - (time.monotonic() - self.began)
        began, numbers = time.monotonic(), {"skipped": f"{left:.0f} seconds are left"}
        if left >= expected:
            try:
                numbers = work()
            except Exception as error:  # the stages after it still teach something
                numbers = {"error": f"{type(error).__name__}: {error}"[:500], "where": traceback.format_exc()[-1500:]}
        self.stages[name] = {**numbers, "seconds of the stage": round(time.monotonic() - began, 1)}
        files.write_json(self.path, self.stages)
        print(name, json.dumps(self.stages[name], default=str)[:1500], flush=True)
        return numbers


def versions(device: torch.device) -> Numbers:
    """The card, and what runs on it."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return {"card": card, "capability": capability, "torch": torch.__version__, "cuda": torch.version.cuda,
            "transformers": transformers.__version__, "python": sys.version.split()[0],
            "msgspec's stand-in": STAND_IN}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for gpu.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="small enough for a CPU; not for quoting")
    parser.add_argument("--seconds", type=float, default=520.0, help="a stage that would end later is left out")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here: nothing was measured.")
        estimates.main()
        return 0
    device, size = torch.device(args.device), TOY if args.toy else FULL
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")  # of torch.compile and of TRL
    transformers.logging.set_verbosity_error()
    report = Report(args.out / "gpu.json", args.seconds, versions(device))
    share = 1.0 if size is FULL else 0.0
    most = report.stage("0 ceilings", 20 * share, lambda: ceilings(device, size)).get("bf16 TFLOP/s", float("nan"))
    assert isinstance(most, float)
    report.stage("1 attention", 60 * share, lambda: attention(device, size))
    report.stage("2 head", 40 * share, lambda: head(device, size))
    report.stage("3 flex", 60 * share, lambda: flexible(device, size))
    report.stage("4 families", 60 * share, lambda: families(device, size))
    report.stage("5 packs", 60 * share, lambda: packs(device, size, most))
    report.stage("6 against TRL", 120 * share, lambda: against_peer(device, size, size.model, REGIMES))
    report.stage("7 adapters", 30 * share, lambda: adapters(device, size))
    report.stage("8 large", 60 * share, lambda: against_peer(device, size, size.large, REGIMES[:1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The same on CUDA, bf16: random models shaped like a 0.5B and a 1.5B, ours against TRL with its flags and batches.

This script has never run on a GPU; what it prints there must be read with that in mind. Time is wall time between the
ends of updates with the device idle, memory is the allocator's peak; both children run alone on the device.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

import common
import speed
import torch
from common import child, median

SHAPES = {"0.5B": (151936, (896, 4864, 24, 14)), "1.5B": (151936, (1536, 8960, 28, 12))}
FLAGS = {  # TRL's candidates for its best on CUDA
    f"{size} a batch{', checkpointing' if again else ''}": {
        "per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size,
        "precompute_ref_log_probs": True, "gradient_checkpointing": again,
    }
    for size, again in ((8, False), (8, True), (4, False), (2, False))
}  # fmt: skip


def compare(place: Path, name: str, regime: str, steps: int) -> dict:
    vocab, shape = SHAPES[name]
    common.SHAPES[vocab] = shape
    mine, planned, source = speed.files(place, regime, vocab, steps)
    words = {"device": "cuda", "model.compute": "bfloat16"}
    told = {"ours": child("ours", {**speed.ours(place, vocab, mine, steps, **words), "cuda": True})}
    for flags, more in FLAGS.items():
        spec = speed.peer(place, vocab, planned, steps, "best", "bfloat16", more=more, cuda=True)
        told[flags] = child("peer", spec)
    seconds = {flags: median([s["wall"] for s in found["steps"][1:]]) for flags, found in told.items()}
    memory = {flags: found["cuda_peak"] / 2**20 for flags, found in told.items()}
    best = min(FLAGS, key=seconds.__getitem__)
    return {"model": name, "regime": regime, "rows": source, "seconds": seconds, "mib": memory, "best": best,
            "speed": seconds[best] / seconds["ours"], "memory": memory[best] / memory["ours"],
            "apart": common.same(told["ours"], told[best]), "versions": told[best]["versions"]}  # fmt: skip


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=5)


def main() -> None:
    args = common.options(__doc__ or "", add)
    if not torch.cuda.is_available():
        print("there is no CUDA device here: nothing was measured.")
        sys.exit(0)
    cells = []
    for name in ("0.5B",) if args.quick else SHAPES:
        with common.workshop() as made:  # a folder a shape: they share a vocabulary
            for regime in common.LENGTHS:
                cells.append(compare(Path(made), name, regime, args.steps))
                c = cells[-1]
                print(f"{name} {regime}: {c['speed']:.2f}x the speed and {c['memory']:.2f}x less memory than TRL "
                      f"with {c['best']}; losses apart by {c['apart']['loss']:.0e}")  # fmt: skip
    common.save("gpu", cells, cells[-1]["versions"], gpu=torch.cuda.get_device_name())


if __name__ == "__main__":
    main()

"""The types that `auto` stands for, once the device is known. Held by tests/run/test_precision.py."""

from __future__ import annotations

import torch
from msgspec.structs import replace

from preftune.config.run import Run
from preftune.events import Note, emit


def with_precision(run: Run, device: torch.device) -> Run:
    """The run with the types that it leaves open; a note tells where products are taken in bfloat16 unasked."""
    weights, compute = run.model.weights, run.model.compute
    if compute == "auto":
        compute = usual_compute(device)
        if compute == "bfloat16":
            emit(Note('products in bfloat16, which this GPU has; model.compute = "float32" takes them in float32'))
    weights = usual_weights(run, device) if weights == "auto" else weights
    return replace(run, model=replace(run.model, weights=weights, compute=compute))


def usual_weights(run: Run, device: torch.device) -> str:
    """The type of weights of which nothing is said: all of them are trained, and fp32 holds the smallest update."""
    return "float32"


def usual_compute(device: torch.device) -> str:
    """bfloat16 where a CUDA device multiplies in it (Ampere and later): 12 times the rate of fp32 on an H100."""
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "float32"

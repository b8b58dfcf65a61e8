"""CPU time and peak memory of the process that this is imported into. Standard library only: both venvs use it."""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path

STATUS = Path("/proc/self/status")


def memory(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the highest since `forget`); 0 where the system does not say."""
    if not STATUS.exists():
        return 0
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(field))


def forget() -> None:
    """Begin a new peak."""
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")


def warmed(path: str) -> int:
    """Bytes that the process takes after its libraries have worked once, with no model in it."""
    import torch
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    module(input_ids=torch.ones((1, 8), dtype=torch.long)).logits.logsumexp(-1).sum().backward()
    del module
    gc.collect()
    if STATUS.exists():
        ctypes.CDLL(None).malloc_trim(0)
    return memory("VmRSS")


class Steps:
    """CPU and wall time from the end of one update to the end of the next, and the peak so far.

    cuda: wait for the device before the clock is read.
    """

    def __init__(self, cuda: bool = False) -> None:
        self.found: list[dict[str, float]] = []
        self.cuda = cuda
        self.begin()

    def begin(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()
        self.last = time.process_time(), time.monotonic()

    def end(self, **numbers: float) -> None:
        cpu, wall = self.last
        self.begin()
        now = self.last
        self.found.append({"cpu": now[0] - cpu, "wall": now[1] - wall, "peak": memory("VmHWM"), **numbers})


def cuda_peak(cuda: bool) -> int:
    """Bytes; the allocator's highest."""
    import torch

    return torch.cuda.max_memory_allocated() if cuda else 0

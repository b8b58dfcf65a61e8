"""Tests that need CUDA: skipped, and shown as skipped, where there is none."""

from __future__ import annotations

import pytest
import torch
from small_run import keys_of, run_of, world

__all__ = ["device", "keys_of", "run_of", "world"]


@pytest.fixture
def device() -> torch.device:
    """The GPU."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    return torch.device("cuda", torch.cuda.current_device())

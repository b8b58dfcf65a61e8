"""What a gated MLP does between its products, in one pass each way where torch's operations make two and five.

Kernels for CUDA, off until they are measured to win, as those of head_triton.py. Held by tests/model/test_triton.py.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
# Triton is there with CUDA only, and a kernel is subscripted with its grid.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # numbers at a time


@triton.jit
def _forward_kernel(g, u, h, count, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = places < count
    gate = tl.load(g + places, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(u + places, mask=mask, other=0.0).to(tl.float32)
    tl.store(h + places, (gate * tl.sigmoid(gate) * up).to(h.dtype.element_ty), mask=mask)


# h = silu(g) u, silu(g) = g s with s = 1 / (1 + exp -g):      du = silu(g) dh      dg = s (1 + g (1 - s)) u dh
@triton.jit
def _backward_kernel(g, u, dh, h, dg, du, count, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = places < count
    gate = tl.load(g + places, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(u + places, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(dh + places, mask=mask, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    tl.store(h + places, (gate * s * up).to(h.dtype.element_ty), mask=mask)
    tl.store(du + places, (gate * s * d).to(du.dtype.element_ty), mask=mask)
    tl.store(dg + places, (s * (1 + gate * (1 - s)) * up * d).to(dg.dtype.element_ty), mask=mask)


def forward(g: Tensor, u: Tensor) -> Tensor:
    """silu(g) u, of two contiguous tensors of one shape."""
    h = torch.empty_like(g)
    _forward_kernel[(triton.cdiv(g.numel(), BLOCK),)](g, u, h, g.numel(), BLOCK=BLOCK)
    return h


def backward(g: Tensor, u: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """h again, which is not kept, and the gradients dg and du; all contiguous and of one shape."""
    h, dg, du = (torch.empty_like(g) for _ in range(3))
    _backward_kernel[(triton.cdiv(g.numel(), BLOCK),)](g, u, dh, h, dg, du, g.numel(), BLOCK=BLOCK)
    return h, dg, du

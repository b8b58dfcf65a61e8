"""Kernels for CUDA, written in Triton, which torch's CUDA wheels bring along.

What the head does to its logits is one read and then one read and one write, where torch's operations make five passes;
what a gated MLP does between its products is one pass each way, where they make two and five. They have never run on a
GPU; `fused.TRITON` switches them on. Held by tests/model/test_triton.py, in Triton's interpreter where there is no GPU.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
# Triton is not everywhere, and a kernel is subscripted with its grid and called with what its launcher takes.

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from preftune.model.heads import LanguageHead

BLOCK = 4096  # tokens of the vocabulary at a time
GATE_BLOCK = 1024  # numbers of a gated MLP at a time
WARPS = 8


# x is W h; z = c tanh(s (x + b) / c), or s (x + b) without a cap, as in logp.py.
@triton.jit
def _logits(x, bias, places, mask, scale, cap, BIASED: tl.constexpr, CAPPED: tl.constexpr):
    if BIASED:
        x += tl.load(bias + places, mask=mask, other=0.0).to(tl.float32)
    z = x * scale
    if CAPPED:  # tanh from an exponential that cannot overflow
        t = tl.exp(-2 * tl.abs(z) / cap)
        z = tl.where(z < 0, -cap, cap) * (1 - t) / (1 + t)
    return z


# With the largest z so far, m, and S = sum of exp(z - m) over the tokens so far, a block with largest z of m' gives
#
#     S <- S exp(m - max(m, m')) + sum over the block of exp(z - max(m, m'))          (arXiv 1805.02867)
#
# so that lse = m + log S needs one read, and logp = z_y - lse no test for a target that is hardly ever said.
@triton.jit
def _rows_kernel(
    x, bias, target, logp, lses, log_squares, dlogits, stride, d_stride, scale, cap,
    vocab: tl.constexpr, BIASED: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x += row * stride
    dlogits += row * d_stride
    largest, total, squares = float("-inf"), 0.0, 0.0
    for first in range(0, vocab, BLOCK):
        places = first + tl.arange(0, BLOCK)
        mask = places < vocab
        z = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
        z = tl.where(mask, _logits(z, bias, places, mask, scale, cap, BIASED, CAPPED), float("-inf"))
        before, largest = largest, tl.maximum(largest, tl.max(z, 0))
        shrink, e = tl.exp(before - largest), tl.exp(z - largest)
        total = total * shrink + tl.sum(e, 0)
        squares = squares * shrink * shrink + tl.sum(e * e, 0)
    lse = largest + tl.log(total)
    y = tl.load(target + row)
    z_y = _logits(tl.load(x + y).to(tl.float32), bias, y, True, scale, cap, BIASED, CAPPED)
    tl.store(logp + row, z_y - lse)
    tl.store(lses + row, lse)
    tl.store(log_squares + row, tl.log(squares) - 2 * tl.log(total))
    for first in range(0, vocab, BLOCK):  # these reads are mostly met by the cache
        places = first + tl.arange(0, BLOCK)
        mask = places < vocab
        z = _logits(
            tl.load(x + places, mask=mask, other=0.0).to(tl.float32), bias, places, mask, scale, cap, BIASED, CAPPED
        )
        d = tl.exp(z - lse) - (places == y).to(tl.float32)
        if CAPPED:
            d *= 1 - (z / cap) * (z / cap)
        tl.store(dlogits + places, d.to(dlogits.dtype.element_ty), mask=mask)


@triton.jit
def _dlogits_kernel(
    x, bias, target, lses, dlogits, words, start, stride, d_stride, scale, cap,
    BIASED: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = places < words
    z = tl.load(x + row * stride + places, mask=mask, other=0.0).to(tl.float32)
    z = _logits(z, bias + start, places, mask, scale, cap, BIASED, CAPPED)
    d = tl.exp(z - tl.load(lses + row)) - (places + start == tl.load(target + row)).to(tl.float32)
    if CAPPED:
        d *= 1 - (z / cap) * (z / cap)
    tl.store(dlogits + row * d_stride + places, d.to(dlogits.dtype.element_ty), mask=mask)


def head_rows(x: Tensor, head: LanguageHead, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x (rows, vocab) fp32, W h of each row, and its target (rows,) -> logp, lse, dlogits in `dtype` and log_squares,
    as in `logp._rows`."""
    logp, lse, log_squares = (torch.empty(len(x), dtype=torch.float32, device=x.device) for _ in range(3))
    dlogits = torch.empty_like(x, dtype=dtype)
    bias = x if head.bias is None else head.bias
    if len(x):
        _rows_kernel[(len(x),)](
            x, bias, target, logp, lse, log_squares, dlogits, x.stride(0), dlogits.stride(0),
            float(head.scale), head.softcap or 1.0, vocab=x.shape[1],
            BIASED=head.bias is not None, CAPPED=head.softcap is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return logp, lse, dlogits, log_squares


def head_dlogits(x: Tensor, head: LanguageHead, target: Tensor, lse: Tensor, start: int, dtype: torch.dtype) -> Tensor:
    """x (rows, words) fp32, W h for the slice of the vocabulary that begins at `start` -> dlogits in `dtype`, as in
    `logp._dlogits`."""
    made = torch.empty_like(x, dtype=dtype)
    bias = x if head.bias is None else head.bias
    if made.numel():
        _dlogits_kernel[(len(x), triton.cdiv(x.shape[1], BLOCK))](
            x, bias, target, lse, made, x.shape[1], start, x.stride(0), made.stride(0),
            float(head.scale), head.softcap or 1.0,
            BIASED=head.bias is not None, CAPPED=head.softcap is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return made


# h = silu(g) u, silu(g) = g s with s = 1 / (1 + exp -g):      du = silu(g) dh      dg = s (1 + g (1 - s)) u dh
@triton.jit
def _gate_kernel(g, u, h, count, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = places < count
    gate = tl.load(g + places, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(u + places, mask=mask, other=0.0).to(tl.float32)
    tl.store(h + places, (gate * tl.sigmoid(gate) * up).to(h.dtype.element_ty), mask=mask)


@triton.jit
def _gate_backward_kernel(g, u, dh, h, dg, du, count, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = places < count
    gate = tl.load(g + places, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(u + places, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(dh + places, mask=mask, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    tl.store(h + places, (gate * s * up).to(h.dtype.element_ty), mask=mask)
    tl.store(du + places, (gate * s * d).to(du.dtype.element_ty), mask=mask)
    tl.store(dg + places, (s * (1 + gate * (1 - s)) * up * d).to(dg.dtype.element_ty), mask=mask)


def gate_forward(g: Tensor, u: Tensor) -> Tensor:
    """silu(g) u, what a gated MLP does between its products, of two contiguous tensors of one shape."""
    h = torch.empty_like(g)
    _gate_kernel[(triton.cdiv(g.numel(), GATE_BLOCK),)](g, u, h, g.numel(), BLOCK=GATE_BLOCK)
    return h


def gate_backward(g: Tensor, u: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """h again, which is not kept, and the gradients dg and du; all contiguous and of one shape."""
    h, dg, du = (torch.empty_like(g) for _ in range(3))
    _gate_backward_kernel[(triton.cdiv(g.numel(), GATE_BLOCK),)](g, u, dh, h, dg, du, g.numel(), BLOCK=GATE_BLOCK)
    return h, dg, du

"""The trie's attention by one variable-length call of FlashAttention-2 a layer: CUDA, half precision.

A sequence of the call is a leaf of the trie: its queries are the rows that no leaf before it has, its keys are its
whole path. The kernel aligns both at their ends, so its causal mask is the trie's, and what counts as distance in its
sliding window is the difference of positions. A row that several leaves share is a key of each of them; its gradient
is the sum over them, in fp32 and in one order, where torch's own backward pass would add half-precision numbers by
atomic operations in whatever order they come.

The kernel is called by its operator, whose arguments are the same in torch 2.11 and 2.13; those of `varlen_attn` are
not, and it drops the gradient by lse. It has never run here: tests put a stand-in in its place.
Held by tests/model/test_varlen.py, and by tests/gpu where there is a GPU.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from preftune.model.layout import Layout, Paths, Shape
from preftune.model.reuse import saved_outputs

WIDEST = 256  # head width that the kernel has
CAPABILITY = (8, 0)  # of a device: older ones lack it


@cache
def takes(device: torch.device, width: int, value_width: int, *, sinks: bool) -> bool:
    """Whether the kernel can do a layer with heads of these widths. AMD's gives lse in a layout of its own, which only
    sinks read."""
    amd = torch.version.hip is not None
    capable = not sinks if amd else torch.cuda.get_device_capability(device) >= CAPABILITY
    return capable and width == value_width <= WIDEST and width % 8 == 0


# With P and lse of the keys alone, and the logit s of a head that takes attention and gives no value (a sink):
#
#     lse' = log(exp lse + exp s)        o' = o exp(lse - lse')        P' = exp(S - lse')
#
# The kernel's backward pass makes P from the lse that it is given, and dS = P (dP - do . o) from the output that it is
# given. Given lse' and o' it is therefore exact, and what is left is     ds = -sum over rows of exp(s - lse') (do . o')
class AlongPaths(torch.autograd.Function):
    """softmax(scores) @ values. Shapes as in `attention.attend`; of a `shape` with a soft cap it takes none."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, layout: Layout, shape: Shape):
        saved = saved_outputs()
        if saved is not None and saved.replay:
            out, lse = saved.tensors.pop(0), saved.tensors.pop(0)
        else:
            k, v = (_by_token(x).index_select(0, layout.varlen.keys) for x in (key, value))
            out, lse = flash_forward(_by_token(query).contiguous(), k, v, layout.varlen, shape)
            if sinks is not None:
                lse_keys, lse = lse, torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
                out = (out * (lse_keys - lse).exp().T[..., None]).to(value.dtype)
            if saved is not None:
                saved.tensors.extend((out, lse))
        ctx.save_for_backward(query, key, value, sinks, out, lse)
        ctx.layout, ctx.shape = layout, shape
        return out[None]

    @staticmethod
    def backward(ctx, dout: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, sinks, out, lse = ctx.saved_tensors
        paths, do = ctx.layout.varlen, dout[0].contiguous()
        k, v = (_by_token(x).index_select(0, paths.keys) for x in (key, value))  # cheaper to gather again than to keep
        dq, dk, dv = flash_backward(do, _by_token(query).contiguous(), k, v, out, lse, paths, ctx.shape)
        dsinks = None
        if sinks is not None:
            delta = (do.to(lse.dtype) * out.to(lse.dtype)).sum(-1).T  # (heads, tokens)
            dsinks = -((sinks.to(lse.dtype)[:, None] - lse).exp() * delta).sum(1).to(sinks.dtype)
        dkey, dvalue = (_by_head(sum_over_paths(d, paths).to(d.dtype)) for d in (dk, dv))
        return _by_head(dq), dkey, dvalue, dsinks, None, None


def sum_over_paths(d_paths: Tensor, paths: Paths) -> Tensor:
    """(keys of all paths, heads, width) -> (rows, heads, width): gradients of a row added up, in fp32 or wider and in
    the order of the paths, so that they are the same bits each time."""
    wide = torch.promote_types(d_paths.dtype, torch.float32)
    by_row = d_paths.index_select(0, paths.by_row).to(wide)
    return torch.segment_reduce(by_row, "sum", lengths=paths.counts, axis=0, unsafe=True)  # unsafe: no wait for checks


def _by_token(x: Tensor) -> Tensor:
    """(1, heads, tokens, width) -> (tokens, heads, width), a view."""
    return x[0].transpose(0, 1)


def _by_head(x: Tensor) -> Tensor:
    """(tokens, heads, width) -> (1, heads, tokens, width), a view: the way back."""
    return x.transpose(0, 1)[None]


def flash_forward(q: Tensor, k: Tensor, v: Tensor, paths: Paths, shape: Shape) -> tuple[Tensor, Tensor]:
    """q (queries, heads, width), k and v (keys, key heads, width) -> out like q, and lse (heads, queries) in fp32."""
    left = -1 if shape.window is None else shape.window - 1  # keys before itself that a row sees
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, paths.cu_q, paths.cu_k, paths.max_q, paths.max_k, 0.0, left < 0, False,
        scale=shape.scale, window_size_left=left, window_size_right=0,
    )  # fmt: skip
    return out, lse


def flash_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, paths: Paths, shape: Shape
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv like q, k and v."""
    left = -1 if shape.window is None else shape.window - 1
    no_dropout, unused = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
    return torch.ops.aten._flash_attention_backward(
        dout, q, k, v, out, lse, paths.cu_q, paths.cu_k, paths.max_q, paths.max_k, 0.0, left < 0, no_dropout, unused,
        scale=shape.scale, window_size_left=left, window_size_right=0,
    )  # fmt: skip

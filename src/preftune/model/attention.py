"""Attention over a trie: every token is a row once, and sees its ancestors.

Registered with transformers' AttentionInterface, so that model code stays theirs: it hands over q, k and v after
rotary embedding, and the layout of the pack as the keyword `trie`. Three ways give the same numbers:

InBlocks    everywhere: dense products of some rows with their ancestors and themselves, one block after the other.
AlongPaths  CUDA, half precision (varlen.py): one variable-length call a layer, with sliding windows and sinks.
in_flex     CUDA otherwise (flex.py): fp32, soft caps, values of another width than keys.

Held by tests/model/test_layouts.py.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from preftune.model import flex, varlen
from preftune.model.layout import Layout, QueryBlock, Shape
from preftune.model.reuse import saved_outputs

NAME = "preftune_trie"


def register() -> str:
    """Make the trie attention known to transformers; returns the name to set on a model."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    return NAME


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    trie: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """query (1, heads, tokens, width), key (1, key heads, tokens, width) and value (1, key heads, tokens, value width)
    -> (1, tokens, heads, value width).

    s_aux: (heads,) a logit for each head that takes attention and gives no value. Raises ValueError where the layout
    did not arrive or the model asks for a bias that a trie cannot place.
    """
    if trie is None or attention_mask is not None or position_bias is not None or query.shape[0] != 1:
        raise ValueError("this model does not hand the trie to its attention as it should")
    trie.calls.append(1)
    width = query.shape[-1]
    window = sliding_window if sliding_window is not None and sliding_window < trie.depth else None
    shape = Shape(width**-0.5 if scaling is None else scaling, softcap, window)
    if query.is_cuda and value.dtype != torch.float64:
        query, key = query.to(value.dtype), key.to(value.dtype)  # norms and rotary embedding may have widened them
    way = way_of(query.device, value.dtype, (width, value.shape[-1]), shape, sinks=s_aux is not None)
    if way == "flex":
        return flex.in_flex(query, key, value, s_aux, trie, shape), None
    with torch.autocast(query.device.type, enabled=False):  # both passes must make the same probabilities
        function = varlen.AlongPaths if way == "paths" else InBlocks
        return function.apply(query, key, value, s_aux, trie, shape), None  # type: ignore[return-value]


def way_of(
    device: torch.device, dtype: torch.dtype, widths: tuple[int, int], shape: Shape, *, sinks: bool
) -> Literal["blocks", "paths", "flex"]:
    """Which of the three ways a layer takes. widths: of a key and of a value, a head; sinks: whether it has them."""
    if device.type != "cuda" or dtype == torch.float64:
        return "blocks"
    if dtype != torch.float32 and shape.softcap is None and varlen.takes(device, *widths, sinks=sinks):
        return "paths"
    return "flex" if all(width in flex.HEAD_WIDTHS for width in widths) else "blocks"


# Forward, for a block of queries i and the keys j of their path (letters of FlashAttention-2, arXiv 2307.08691):
#
#     S_ij = scale q_i . k_j             with a soft cap: S <- c tanh(S / c)
#     S_ij = -inf                        where row i does not see row j
#     P    = softmax over j of S         with a sink: one more column, a logit of the head, that has no value
#     o_i  = sum_j P_ij v_j
#
# Backward, from do. P is computed again: kept, it would be the one thing of size tokens x tokens. Unlike
# FlashAttention we need no running maximum and no lse, because a block has all of its keys at once.
#
#     dv_j = sum_i P_ij do_i             dP_ij = do_i . v_j
#     dS   = P * (dP - sum_j dP P)       with a soft cap: dS <- dS * (1 - (S / c)^2), since tanh' = 1 - tanh^2
#     dq_i = scale sum_j dS_ij k_j       dk_j = sum_i dS_ij (scale q_i)
#     dsink = sum_i dS_i,sink            of each query head
#
# n_rep query heads share a key head (grouped queries, arXiv 2305.13245). Lying side by side as rows, they are one
# product with their keys, and keys need not be repeated. Blocks of one path come after one another, so that k, v, dk
# and dv of the path are gathered once for all of its blocks, and mostly not at all: they are slices.
class InBlocks(torch.autograd.Function):
    """softmax(scores) @ values, block by block, in fp32 or wider. Shapes as in `attend`."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, layout: Layout, shape: Shape):
        ctx.save_for_backward(query, key, value, sinks)
        ctx.layout, ctx.shape = layout, shape
        saved = saved_outputs()
        if saved is not None and saved.replay:
            return saved.tensors.pop(0)
        heads, n_rep = key.shape[1], query.shape[1] // key.shape[1]
        q, k, v = (_by_key_head(x, heads) for x in (query, key, value))
        q.mul_(shape.scale)
        out = q.new_zeros(*q.shape[:2], v.shape[2])  # rows of blocks that are left out stay 0
        for run in layout.path_runs(shape.window):
            k_path, v_path = run.gather(k), run.gather(v)
            for block in run.blocks:
                rows, k_seen = slice(block.start * n_rep, block.stop * n_rep), k_path[:, block.keys]
                P, _ = _probs(q[:, rows], k_seen, sinks, block, shape)
                out[:, rows] = torch.bmm(P[..., : k_seen.shape[1]], v_path[:, block.keys])
        out = _by_token(out, n_rep).to(value.dtype)
        if saved is not None:
            saved.tensors.append(out.detach())
        return out

    @staticmethod
    def backward(ctx, dout: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, sinks = ctx.saved_tensors
        shape, heads, n_rep = ctx.shape, key.shape[1], query.shape[1] // key.shape[1]
        q, k, v, do = (_by_key_head(x, heads) for x in (query, key, value, dout.transpose(1, 2)))
        q.mul_(shape.scale)
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        dsinks = q.new_zeros(heads, n_rep)
        for run in ctx.layout.path_runs(shape.window):
            k_path, v_path = run.gather(k), run.gather(v)
            dk_path, dv_path = run.grad_buffer(dk), run.grad_buffer(dv)
            for block in run.blocks:
                rows, k_seen = slice(block.start * n_rep, block.stop * n_rep), k_path[:, block.keys]
                n_keys = k_seen.shape[1]
                P, cap_slope = _probs(q[:, rows], k_seen, sinks, block, shape)
                dP = torch.bmm(do[:, rows], v_path[:, block.keys].transpose(1, 2))
                if sinks is not None:
                    dP = torch.nn.functional.pad(dP, (0, 1))  # the sink gives no value
                dS = torch.ops.aten._softmax_backward_data(dP, P, -1, P.dtype)  # one pass where three would be
                if sinks is not None:
                    dsinks += dS[..., n_keys].view(heads, -1, n_rep).sum(1)
                dS = dS[..., :n_keys] if cap_slope is None else dS[..., :n_keys] * cap_slope
                dq[:, rows] = torch.bmm(dS, k_seen)
                dk_path[:, block.keys].baddbmm_(dS.transpose(1, 2), q[:, rows])
                dv_path[:, block.keys].baddbmm_(P[..., :n_keys].transpose(1, 2), do[:, rows])
            run.scatter_add(dk, dk_path)
            run.scatter_add(dv, dv_path)
        dquery = _by_token(dq.mul_(shape.scale), n_rep).transpose(1, 2).to(query.dtype)
        dsinks = None if sinks is None else dsinks.flatten().to(sinks.dtype)
        return dquery, dk[None].to(key.dtype), dv[None].to(value.dtype), dsinks, None, None


def _probs(q: Tensor, k: Tensor, sinks: Tensor | None, block: QueryBlock, shape: Shape) -> tuple[Tensor, Tensor | None]:
    """P of a block, (key heads, rows * n_rep, keys and perhaps the sink), and the slope of the soft cap.

    q, scaled: (key heads, rows * n_rep, width); k: (key heads, keys, width).
    """
    S, cap_slope = torch.bmm(q, k.transpose(1, 2)), None
    if shape.softcap is not None:
        S = S.div_(shape.softcap).tanh_()
        cap_slope = 1 - S**2
        S.mul_(shape.softcap)
    heads, _, n_keys = S.shape
    by_row = S.view(heads, block.stop - block.start, -1, n_keys)  # (key heads, rows, n_rep, keys)
    by_row[..., n_keys - block.mask.shape[1] :].add_(block.mask[:, None])
    if sinks is not None:
        sink = sinks.to(S.dtype).view(heads, 1, -1).expand(by_row.shape[:3])
        S = torch.cat([S, sink.reshape(heads, -1, 1)], -1)
    return torch.softmax(S, -1), cap_slope


def _by_key_head(x: Tensor, heads: int) -> Tensor:
    """(1, query heads, tokens, width) -> (key heads, tokens * n_rep, width), a copy in fp32 or wider."""
    _, query_heads, tokens, width = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    copy = torch.empty(heads, tokens, query_heads // heads, width, dtype=wide, device=x.device)
    copy.copy_(x.view(heads, -1, tokens, width).transpose(1, 2))
    return copy.view(heads, -1, width)


def _by_token(x: Tensor, n_rep: int) -> Tensor:
    """(key heads, tokens * n_rep, width) -> (1, tokens, query heads, width): the way back."""
    heads, rows, width = x.shape
    by_token = x.view(heads, rows // n_rep, n_rep, width).transpose(0, 1)
    return by_token.reshape(1, rows // n_rep, heads * n_rep, width)

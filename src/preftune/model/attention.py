"""Attention over a trie: every token is a row once, and sees its ancestors.

Registered with transformers' AttentionInterface, so that model code stays theirs: it hands over queries, keys and
values after rotary embedding, and the layout of the pack as the keyword `trie`. Three ways give the same numbers:

merged  CPU: dense blocks without a mask, joined by their log-sum-exp; the backward pass of each block takes the
        global output and log-sum-exp, as ring attention does (arXiv 2310.01889).
paths   CUDA, half precision: one variable-length call a layer; a sequence's own rows are the queries, its whole
        path is the keys, aligned at the end.
masked  everywhere: one dense square a tree. Also for what the kernels lack: sliding windows shorter than a path,
        soft caps, sinks, float64.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preftune.pack.batch import Layout
from preftune.pack.visible import Block, visible

NAME = "preftune_trie"
SMALL = 64  # rows: below it one masked square beats several slivers (bench/limit.py)


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
    """query (1, heads, tokens, width), key and value (1, key heads, tokens, width) -> (1, tokens, heads, width).

    Raises ValueError where the pack's layout did not arrive or the model asks for a bias that a trie cannot place.
    """
    if trie is None or attention_mask is not None or position_bias is not None or query.shape[0] != 1:
        raise ValueError("this model does not hand the trie to its attention as it should")
    trie.calls.append(1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window is not None and sliding_window < trie.depth else None
    plain = window is None and softcap is None and s_aux is None
    if plain and query.device.type == "cpu" and query.dtype != torch.float64 and _cpu_flash():
        out = Merged.apply(query, key, value, trie, scale)
    elif plain and query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16) and _varlen():
        out = along_paths(query, key, value, trie, scale)
    else:
        out = masked(query, key, value, trie, scale, window, softcap, s_aux)
    return out.transpose(1, 2), None


def masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    trie: Layout,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """One dense masked square a tree of the pack; shapes as in `attend`, result (1, heads, tokens, width)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    pieces = []
    for block in trie.blocks(small=len(trie.end)):
        rows = slice(block.q0, block.q1)
        scores = (query[:, :, rows] @ key[:, :, rows].transpose(2, 3)).mul(scale)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~seen(trie, block, window), float("-inf"))
        if sinks is not None:  # a logit that every row may give its attention to, and that has no value
            scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)], -1)
        weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
        pieces.append(weights[..., : block.k1 - block.k0] @ value[:, :, rows])
    return torch.cat(pieces, 2)


def seen(trie: Layout, block: Block, window: int | None = None) -> Tensor:
    """(queries, keys) of a block, bool; `window` counts positions on the path, as models count them."""
    row = torch.arange(block.q0, block.q1, device=trie.end.device)
    sees = visible(row[:, None], row[None, :], trie.end)
    if window is not None:
        sees &= trie.position[row][:, None] - trie.position[row][None, :] < window
    return sees


class Merged(torch.autograd.Function):
    """Blocks of flash attention on the CPU, joined by log-sum-exp."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, trie: Layout, scale: float) -> Tensor:
        joined = torch.zeros(query.shape, dtype=torch.float32)
        total = torch.empty(query.shape[:3], dtype=torch.float32)
        reach = 0
        for block in trie.blocks(SMALL):
            q, k = slice(block.q0, block.q1), slice(block.k0, block.k1)
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, q],
                key[:, :, k],
                value[:, :, k],
                0.0,
                block.kind == "causal",
                attn_mask=_mask(trie, block, query.dtype),
                scale=scale,
            )
            if block.q0 >= reach:  # the first block that these rows meet
                joined[:, :, q], total[:, :, q] = out, lse
            else:
                both = torch.logaddexp(total[:, :, q], lse)
                joined[:, :, q].mul_((total[:, :, q] - both).exp_()[..., None]).add_(
                    out * (lse - both).exp_()[..., None]
                )
                total[:, :, q] = both
            reach = max(reach, block.q1)
        result = joined.to(query.dtype)
        ctx.save_for_backward(query, key, value, result, total)
        ctx.trie, ctx.scale = trie, scale
        return result

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, result, total = ctx.saved_tensors
        sums = [torch.zeros(t.shape, dtype=torch.float32) for t in (query, key, value)]
        for block in ctx.trie.blocks(SMALL):
            q, k = slice(block.q0, block.q1), slice(block.k0, block.k1)
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[:, :, q],
                query[:, :, q],
                key[:, :, k],
                value[:, :, k],
                result[:, :, q],
                total[:, :, q],
                0.0,
                block.kind == "causal",
                attn_mask=_mask(ctx.trie, block, query.dtype),
                scale=ctx.scale,
            )
            for into, part, rows in zip(sums, parts, (q, k, k), strict=True):
                into[:, :, rows] += part
        return *(s.to(query.dtype) for s in sums), None, None


def _mask(trie: Layout, block: Block, dtype: torch.dtype) -> Tensor | None:
    """The additive mask of a masked square, made once a pack; None for blocks that need none."""
    if block.kind != "masked":
        return None
    if (block, dtype) not in trie.masks:
        trie.masks[block, dtype] = torch.zeros((), dtype=dtype).where(seen(trie, block), float("-inf"))
    return trie.masks[block, dtype]


def along_paths(query: Tensor, key: Tensor, value: Tensor, trie: Layout, scale: float) -> Tensor:
    """One variable-length call: queries are the rows that a sequence brought in, keys its whole path."""
    from torch.nn.attention.varlen import varlen_attn

    path, starts_q, starts_k, longest_q, longest_k = leaf_plan(trie)
    q = query[0].transpose(0, 1).contiguous()
    k, v = (t[0].transpose(0, 1).index_select(0, path) for t in (key, value))
    out = varlen_attn(q, k, v, starts_q, starts_k, longest_q, longest_k, scale=scale, **_varlen_options())
    assert isinstance(out, Tensor)
    return out.transpose(0, 1)[None]


def leaf_plan(trie: Layout) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Rows of all paths (in the order of the leaves), where each leaf's queries and keys start, and the longest."""
    if trie.leaves is None:
        paths = sorted({path[-1]: path for path in trie.trie.paths}.values(), key=lambda path: path[-1])
        kept = [p for p, after in zip(paths, [*paths[1:], None], strict=True) if after is None or p[-1] not in after]
        last = np.array([path[-1] for path in kept])
        q, k = np.diff(last, prepend=-1), np.array([len(path) for path in kept])
        put = lambda x, dtype: torch.from_numpy(x).to(trie.end.device, dtype)  # noqa: E731
        starts = [put(np.concatenate([[0], np.cumsum(n)]), torch.int32) for n in (q, k)]
        trie.leaves = (put(np.concatenate(kept), torch.int64), *starts, int(q.max()), int(k.max()))  # type: ignore
    return trie.leaves  # type: ignore[return-value]


@cache
def _cpu_flash() -> bool:
    """Whether torch has the private CPU kernels with the arguments used here."""
    names = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward")
    try:
        schemas = [getattr(torch.ops.aten, name).default._schema for name in names]
    except AttributeError:
        return False
    return all({"is_causal", "attn_mask", "scale"} <= {a.name for a in s.arguments} for s in schemas)


@cache
def _varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


@cache
def _varlen_options() -> dict[str, Any]:  # keywords that differ between versions of torch
    from torch.nn.attention.varlen import varlen_attn

    causal = {"window_size": (-1, 0)}
    gqa = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    return {**causal, **gqa}

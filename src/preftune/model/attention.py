"""Attention over a trie: every token is a row once, and sees its ancestors.

Registered with transformers' AttentionInterface, so that model code stays theirs: it hands over queries, keys and
values after rotary embedding, and the layout of the pack as the keyword `trie`. Three ways give the same numbers:

in_blocks    everywhere: some rows against their ancestors and themselves, as dense products, block after block. The
             weights of a block are made again in the backward pass, so nothing of size tokens x tokens is kept.
along_paths  CUDA, half precision: one variable-length call a layer; a sequence's own rows are the queries, its whole
             path is the keys, aligned at the end.
in_flex      CUDA otherwise (flex.py): fp32, soft caps, sinks, sliding windows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from preftune.model import flex
from preftune.pack.batch import Layout, Piece

NAME = "preftune_trie"


def register() -> str:
    """Make the trie attention known to transformers; returns the name to set on a model."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    return NAME


class Shape(NamedTuple):
    """What a family does to its scores: times `scale`, softcap c in c * tanh(score / c), window in positions."""

    scale: float
    softcap: float | None = None
    window: int | None = None


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

    s_aux: (heads,) a logit a head that takes attention and gives no value. Raises ValueError where the pack's layout
    did not arrive or the model asks for a bias that a trie cannot place.
    """
    if trie is None or attention_mask is not None or position_bias is not None or query.shape[0] != 1:
        raise ValueError("this model does not hand the trie to its attention as it should")
    trie.calls.append(1)
    window = sliding_window if sliding_window is not None and sliding_window < trie.depth else None
    shape = Shape(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, window)
    width = query.shape[-1]
    if query.is_cuda and value.dtype != torch.float64:
        query, key = query.to(value.dtype), key.to(value.dtype)  # norms and rotary embedding may have widened them
        plain = softcap is None and window is None and s_aux is None and width % 8 == 0 and width <= 256
        if plain and value.dtype != torch.float32 and _varlen():
            return along_paths(query, key, value, trie, shape.scale), None
        if width in flex.WIDTHS:
            return flex.in_flex(query, key, value, s_aux, trie, *shape), None
    with torch.autocast(query.device.type, enabled=False):  # both passes must make the same weights
        return InBlocks.apply(query, key, value, s_aux, trie, shape), None  # type: ignore[return-value]


class Kept(NamedTuple):
    """What attention gave in the first pass of a layer, in order; again: this is the second pass."""

    outputs: list[Tensor]
    again: bool


_KEPT: ContextVar[Kept | None] = ContextVar("kept", default=None)


def keep_outputs() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For torch's checkpoint, as `context_fn`: what is dear to compute and small is not computed again."""
    outputs: list[Tensor] = []
    return _keeping(Kept(outputs, again=False)), _keeping(Kept(outputs, again=True))


@contextmanager
def _keeping(kept: Kept) -> Iterator[None]:
    before = _KEPT.set(kept)
    try:
        yield
    finally:
        _KEPT.reset(before)


class InBlocks(torch.autograd.Function):
    """softmax(scores) @ values, block by block, in fp32 or wider. Heads that share keys are rows of one product."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, trie: Layout, shape: Shape):
        ctx.save_for_backward(query, key, value, sinks)
        ctx.trie, ctx.shape = trie, shape
        kept = _KEPT.get()
        if kept is not None and kept.again:
            return kept.outputs.pop(0)
        heads, share = key.shape[1], query.shape[1] // key.shape[1]
        queries, keys, values = (_by_key_head(x, heads) for x in (query, key, value))
        queries.mul_(shape.scale)
        out = torch.zeros_like(queries)
        for stretch in trie.stretches(shape.window):
            own, theirs = stretch.take(keys), stretch.take(values)
            for piece in stretch.pieces:
                rows, seen = slice(piece.start * share, piece.stop * share), own[:, piece.seen]
                weights, _ = _weights(queries[:, rows], seen, sinks, piece, shape)
                out[:, rows] = torch.bmm(weights[..., : seen.shape[1]], theirs[:, piece.seen])
        out = _by_token(out, share).to(value.dtype)
        if kept is not None:
            kept.outputs.append(out.detach())
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, sinks = ctx.saved_tensors
        shape, heads, share = ctx.shape, key.shape[1], query.shape[1] // key.shape[1]
        queries, keys, values, grads = (_by_key_head(x, heads) for x in (query, key, value, grad.transpose(1, 2)))
        queries.mul_(shape.scale)
        d_queries, d_keys, d_values = (torch.zeros_like(x) for x in (queries, keys, values))
        d_sinks = queries.new_zeros(heads, share)
        for stretch in ctx.trie.stretches(shape.window):
            own, theirs = stretch.take(keys), stretch.take(values)
            d_own, d_theirs = stretch.room(d_keys), stretch.room(d_values)
            for piece in stretch.pieces:
                rows, seen = slice(piece.start * share, piece.stop * share), own[:, piece.seen]
                count = seen.shape[1]
                weights, slope = _weights(queries[:, rows], seen, sinks, piece, shape)
                by_weight = torch.bmm(grads[:, rows], theirs[:, piece.seen].transpose(1, 2))
                if sinks is not None:
                    by_weight = torch.nn.functional.pad(by_weight, (0, 1))
                by_score = torch.ops.aten._softmax_backward_data(by_weight, weights, -1, weights.dtype)
                if sinks is not None:
                    d_sinks += by_score[..., count].view(heads, -1, share).sum(1)
                by_score = by_score[..., :count] if slope is None else by_score[..., :count] * slope
                d_queries[:, rows] = torch.bmm(by_score, seen)
                d_own[:, piece.seen].baddbmm_(by_score.transpose(1, 2), queries[:, rows])
                d_theirs[:, piece.seen].baddbmm_(weights[..., :count].transpose(1, 2), grads[:, rows])
            stretch.add(d_keys, d_own)
            stretch.add(d_values, d_theirs)
        d_query = _by_token(d_queries.mul_(shape.scale), share).transpose(1, 2).to(query.dtype)
        d_sinks = None if sinks is None else d_sinks.flatten().to(sinks.dtype)
        return d_query, d_keys[None].to(key.dtype), d_values[None].to(value.dtype), d_sinks, None, None


def _weights(
    queries: Tensor, keys: Tensor, sinks: Tensor | None, piece: Piece, shape: Shape
) -> tuple[Tensor, Tensor | None]:
    """Attention weights (key heads, rows * share, keys and perhaps the sink), and the slope of the soft cap."""
    scores, slope = torch.bmm(queries, keys.transpose(1, 2)), None
    if shape.softcap is not None:
        scores = scores.div_(shape.softcap).tanh_()
        slope = 1 - scores**2
        scores.mul_(shape.softcap)
    heads, _, count = scores.shape
    table = scores.view(heads, piece.stop - piece.start, -1, count)
    table[..., count - piece.mask.shape[1] :].add_(piece.mask[:, None])
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(heads, 1, -1).expand(table.shape[:3])
        scores = torch.cat([scores, sink.reshape(heads, -1, 1)], -1)
    return torch.softmax(scores, -1), slope


def _by_key_head(x: Tensor, heads: int) -> Tensor:
    """(1, query heads, tokens, width) -> (key heads, tokens * share, width), a copy in fp32 or wider.

    share: query heads a key head.
    """
    _, queries, tokens, width = x.shape
    copy = torch.empty(
        heads, tokens, queries // heads, width, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device
    )
    copy.copy_(x.view(heads, -1, tokens, width).transpose(1, 2))
    return copy.view(heads, -1, width)


def _by_token(x: Tensor, share: int) -> Tensor:
    """The way back, to (1, tokens, query heads, width)."""
    heads, rows, width = x.shape
    by_token = x.view(heads, rows // share, share, width).transpose(0, 1)
    return by_token.reshape(1, rows // share, heads * share, width)


def along_paths(query: Tensor, key: Tensor, value: Tensor, trie: Layout, scale: float) -> Tensor:
    """One variable-length call: queries are the rows that a sequence brought in, keys its whole path.

    Shapes as in `attend`.
    """
    from torch.nn.attention.varlen import varlen_attn

    path, starts_q, starts_k, longest_q, longest_k = trie.leaves
    q = query[0].transpose(0, 1).contiguous()
    k, v = (t[0].transpose(0, 1).index_select(0, path) for t in (key, value))
    out = varlen_attn(q, k, v, starts_q, starts_k, longest_q, longest_k, scale=scale, **_varlen_options())
    assert isinstance(out, Tensor)
    return out[None]


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

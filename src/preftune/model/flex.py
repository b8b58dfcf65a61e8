"""The trie's attention by torch's FlexAttention: for what variable-length kernels lack on CUDA.

Its block mask follows from `end` alone: which blocks of keys a block of queries meets, and which of those need no
mask. Nothing of size tokens x tokens is made. Held by tests/model/test_layouts.py.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from preftune.model.layout import Layout, Shape
from preftune.pack.trie import visible

SIDE = 128  # rows of a block
HEAD_WIDTHS = (16, 32, 64, 128, 256)  # those that its kernels have


def in_flex(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, layout: Layout, shape: Shape) -> Tensor:
    """q (1, heads, tokens, width), k and v (1, key heads, tokens, width) -> (1, tokens, heads, width)."""
    # a number on the device: torch.compile takes a Python float of a closure for one that varies, and fails on it
    cap, window = torch.full((), shape.softcap or 1.0, dtype=torch.float32, device=q.device), shape.window

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    answer: Any = (_compiled() if q.is_cuda else flex_attention)(
        q,
        k,
        v,
        score_mod=None if shape.softcap is None else capped,
        block_mask=layout.memo(("flex", window), lambda: block_mask(layout, window)),
        scale=shape.scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_aux=None if sinks is None else AuxRequest(lse=True),
    )
    if sinks is None:
        return answer.transpose(1, 2)
    out, aux = answer
    # softmax over keys and sink gives the keys exp(lse) / (exp(lse) + exp(sink)) of the weight
    weight = torch.sigmoid(aux.lse - sinks.view(1, -1, 1))
    return (out * weight.to(out.dtype)[..., None]).transpose(1, 2)


def block_mask(layout: Layout, window: int | None) -> BlockMask:
    """Who sees whom, for blocks of SIDE rows; window: positions that a row looks back on, itself included."""
    rows = len(layout.end)
    some, whole = blocks_met(layout.trie.end, layout.trie.position, window)
    padding = -rows % SIDE
    end, position = (torch.nn.functional.pad(x, (0, padding)) for x in (layout.end, layout.position))

    def sees(_: Tensor, __: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = visible(q, k, end)
        return seen if window is None else seen & (position[q] - position[k] < window)

    lists = [part for met in (some & ~whole, whole) for part in _as_lists(met, layout.end.device)]
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=SIDE, mask_mod=sees, seq_lengths=(rows, rows))


def blocks_met(end: np.ndarray, position: np.ndarray, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(blocks, blocks) bool each, of queries and keys: whether some row may see some other, and whether all see all."""
    starts = np.arange(0, len(end), SIDE)
    stops = np.minimum(starts + SIDE, len(end))
    furthest, nearest = np.maximum.reduceat(end, starts), np.minimum.reduceat(end, starts)
    some = (furthest[None, :] > starts[:, None]) & (starts[None, :] < stops[:, None])
    whole = (nearest[None, :] >= stops[:, None]) & (stops[None, :] <= starts[:, None] + 1)
    whole &= stops[:, None] - starts[:, None] == SIDE  # a last block that is not full is masked
    if window is not None:
        highest, lowest = np.maximum.reduceat(position, starts), np.minimum.reduceat(position, starts)
        whole &= highest[:, None] - lowest[None, :] < window
    return some, whole


def _as_lists(met: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries meets, and which, those first; (1, 1, blocks[, blocks]) int32."""
    order = np.argsort(~met, axis=1, kind="stable")
    counts, blocks = (torch.from_numpy(np.ascontiguousarray(x, np.int32)) for x in (met.sum(1), order))
    return counts.to(device)[None, None], blocks.to(device)[None, None]


@cache
def _compiled():
    return torch.compile(flex_attention, dynamic=True)

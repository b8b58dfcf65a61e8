"""The trie's attention by torch's FlexAttention: for what variable-length kernels lack on CUDA.

Its block mask is written down from `end` alone: which blocks of keys a block of queries meets, and which of those need
no mask. Nothing of size tokens x tokens is made.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from preftune.pack.batch import Layout
from preftune.pack.visible import visible

SIDE = 128  # rows of a block
WIDTHS = (16, 32, 64, 128, 256)  # of a head, that its kernels have


def in_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    trie: Layout,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """query (1, heads, tokens, width), key and value (1, key heads, tokens, width) -> (1, tokens, heads, width)."""

    cap = softcap or 1.0

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    found: Any = (_compiled() if query.is_cuda else flex_attention)(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=trie.once(("flex", window), lambda: block_mask(trie, window)),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=None if sinks is None else AuxRequest(lse=True),
    )
    if sinks is None:
        return found.transpose(1, 2)
    out, aux = found
    left = torch.sigmoid(aux.lse - sinks.view(1, -1, 1))  # the share of a row's attention that its sink leaves to keys
    return (out * left.to(out.dtype)[..., None]).transpose(1, 2)


def block_mask(trie: Layout, window: int | None) -> BlockMask:
    """Who sees whom, for blocks of SIDE rows; window: positions that a row looks back on, itself included."""
    count = -(-len(trie.end) // SIDE)
    some, whole = blocks_met(trie.trie.end, None if window is None else trie.trie.position, window)
    padding = count * SIDE - len(trie.end)
    end, position = (torch.nn.functional.pad(x, (0, padding)) for x in (trie.end, trie.position))

    def sees(_: Tensor, __: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = visible(q, k, end)
        return seen if window is None else seen & (position[q] - position[k] < window)

    parts = [part for met in (some & ~whole, whole) for part in _listed(met, trie.end.device)]
    return BlockMask.from_kv_blocks(*parts, BLOCK_SIZE=SIDE, mask_mod=sees, seq_lengths=(len(trie.end), len(trie.end)))


def blocks_met(end: np.ndarray, position: np.ndarray | None, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(blocks, blocks) bool each, of queries and keys: whether some row may see some other, and whether all see all."""
    count = -(-len(end) // SIDE)
    starts = np.arange(count) * SIDE
    stops = np.minimum(starts + SIDE, len(end))
    furthest, nearest = np.maximum.reduceat(end, starts), np.minimum.reduceat(end, starts)
    some = (furthest[None, :] > starts[:, None]) & (starts[None, :] < stops[:, None])
    whole = (nearest[None, :] >= stops[:, None]) & (stops[None, :] <= starts[:, None] + 1)
    whole &= stops[:, None] - starts[:, None] == SIDE  # a last block that is not full is masked
    if position is not None and window is not None:
        highest, lowest = np.maximum.reduceat(position, starts), np.minimum.reduceat(position, starts)
        whole &= highest[:, None] - lowest[None, :] < window
    return some, whole


def _listed(met: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries meets, and which, those first; (1, 1, blocks[, blocks]) int32."""
    order = np.argsort(~met, axis=1, kind="stable")
    put = lambda x: torch.from_numpy(np.ascontiguousarray(x, np.int32)).to(device)[None, None]  # noqa: E731
    return put(met.sum(1)), put(order)


@cache
def _compiled():
    return torch.compile(flex_attention, dynamic=True)

"""Attention over a trie by its definition, to hold every other way against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from making import group, groups
from torch import Tensor

from preftune.model.layout import Layout, Shape
from preftune.pack.batch import collate
from preftune.pack.trie import visible

PACKS = {
    "pairs": groups(4, seed=5, prompt=(20, 90), response=(5, 40)),
    "short": groups(9, seed=6, prompt=(1, 9), response=(1, 3), shared=1),
    "ranking": [group(range(3, 90), *([8 + n, *range(20, 30 + 5 * n)] for n in range(7)), kind="ranking")],
    "prefix": [group([3, 4, 5], [6, 7, 8, 9], [6, 7])],
}
Way = Callable[[Tensor, Tensor, Tensor, Tensor | None, Layout, Shape], Tensor]


def dense(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, layout: Layout, shape: Shape) -> Tensor:
    """The definition: one masked square over the whole pack, in double; result (1, tokens, heads, width)."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * shape.scale
    if shape.softcap is not None:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    row = torch.arange(len(layout.end))
    sees = visible(row[:, None], row[None, :], layout.end)
    if shape.window is not None:
        sees &= layout.position[:, None] - layout.position[None, :] < shape.window
    scores = scores.masked_fill(~sees, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
    return (scores.softmax(-1)[..., : len(row)] @ v).transpose(1, 2)


def assert_dense(
    way: Way, pack: str, shape: Shape, dtype: torch.dtype, allowed: float, *, key_heads: int, sunk: bool
) -> None:
    """Of 6 query heads, with sinks where `sunk`: the result and all gradients are those of the definition."""
    layout = Layout.of(collate(PACKS[pack]))
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, n, len(layout.end), 16).to(dtype).requires_grad_() for n in (6, key_heads, key_heads))
    sinks = torch.randn(6).to(dtype).requires_grad_() if sunk else None
    inputs = [q, k, v, *([] if sinks is None else [sinks])]
    upstream = torch.randn(1, len(layout.end), 6, 16).to(dtype)
    ways = []
    for each in (way, dense):
        out = each(q, k, v, sinks, layout, shape)
        ways.append([out.detach(), *torch.autograd.grad(out, inputs, upstream.to(out.dtype))])
    for ours, exact in zip(*ways, strict=True):
        assert (ours.dtype, ours.shape) == (dtype, exact.shape)
        assert float((ours.double() - exact).abs().max()) <= allowed * max(1.0, float(exact.abs().max()))

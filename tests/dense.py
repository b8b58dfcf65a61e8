"""Attention over a trie by its definition, to hold every other way against."""

from __future__ import annotations

import torch
from torch import Tensor

from preftune.model.layout import Layout, Shape
from preftune.pack.trie import visible


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

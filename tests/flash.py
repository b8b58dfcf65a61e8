"""FlashAttention's variable-length call by its definition: it takes the kernel's place where there is no GPU."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from preftune.model.layout import Paths, Shape


def scores(q: Tensor, k: Tensor, shape: Shape) -> Tensor:
    """(heads, queries, keys) of one sequence: ends aligned, causal, within the window; -inf where nothing is seen."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    last = len(k) - len(q) + torch.arange(len(q))[:, None]  # the key that is the query's own row
    key = torch.arange(len(k))[None]
    seen = (key <= last) & (last - key < (shape.window or len(k)))
    return (torch.einsum("qhd,khd->hqk", q, k) * shape.scale).masked_fill(~seen, float("-inf"))


def sequences(paths: Paths) -> list[tuple[slice, slice]]:
    """The queries and keys of each sequence of a call."""
    both = [[slice(a, b) for a, b in itertools.pairwise(cu.tolist())] for cu in (paths.cu_q, paths.cu_k)]
    return list(zip(*both, strict=True))


def forward(q: Tensor, k: Tensor, v: Tensor, paths: Paths, shape: Shape) -> tuple[Tensor, Tensor]:
    """What FlashAttention gives: the queries that no sequence has are left as they were met."""
    out, lse = torch.full_like(q, float("nan")), torch.full((q.shape[1], len(q)), float("nan"), dtype=torch.float64)
    for rows, keys in sequences(paths):
        S = scores(q[rows].double(), k[keys].double(), shape)
        values = v[keys].double().repeat_interleave(q.shape[1] // v.shape[1], 1)
        out[rows] = torch.einsum("hqk,khd->qhd", S.softmax(-1), values).to(q.dtype)
        lse[:, rows] = S.logsumexp(-1)
    return out, lse.to(torch.promote_types(q.dtype, torch.float32))


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, paths: Paths, shape: Shape
) -> tuple[Tensor, Tensor, Tensor]:
    """What FlashAttention gives: probabilities from the lse, and the correction from the output, as they are given."""
    dq, dk, dv = (torch.zeros_like(x, dtype=torch.float64) for x in (q, k, v))
    repeat = q.shape[1] // k.shape[1]
    for rows, keys in sequences(paths):
        P = (scores(q[rows].double(), k[keys].double(), shape) - lse[:, rows, None].double()).exp()
        wide_k, wide_v = (x[keys].double().repeat_interleave(repeat, 1) for x in (k, v))
        delta = (dout[rows].double() * out[rows].double()).sum(-1).T[..., None]
        dS = P * (torch.einsum("qhd,khd->hqk", dout[rows].double(), wide_v) - delta) * shape.scale
        dq[rows] = torch.einsum("hqk,khd->qhd", dS, wide_k)
        for total, by_head in ((dk, torch.einsum("hqk,qhd->khd", dS, q[rows].double())),
                               (dv, torch.einsum("hqk,qhd->khd", P, dout[rows].double()))):  # fmt: skip
            total[keys] = by_head.unflatten(1, (-1, repeat)).sum(2)
    return dq.to(q), dk.to(k), dv.to(v)

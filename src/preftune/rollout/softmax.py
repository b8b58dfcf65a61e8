"""Attention of queries to keys that lie before them, with the log-sum of its scores.

Held by tests/rollout/test_embedded.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from preftune.model.layout import Shape

BLOCK = 512  # queries of a prompt at a time, where scores are written out


# With scores S = scale q k^T, capped to c tanh(S / c), and -inf where a query does not see a key:
#
#     lse = log sum_j exp S_j        o = sum_j exp(S_j - lse) v_j        a query that sees nothing: lse = -inf, o = 0
def past(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """q (n, key heads, queries, width), scaled; k, v (n, key heads, keys, width); mask 0 or -inf, as wide as the keys.

    Returns what the keys give, (n, key heads, queries, value width), and the log-sum, (n, key heads, queries).
    """
    if shape.window is None and shape.softcap is None and q.device.type == "cpu" and k.shape[-1] == v.shape[-1]:
        mask = mask.expand(-1, 1, q.shape[2], -1)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=1.0)
    scores = q @ k.transpose(2, 3)
    if shape.softcap is not None:
        scores.div_(shape.softcap).tanh_().mul_(shape.softcap)
    wide = torch.promote_types(scores.dtype, torch.float32)
    scores = scores.to(wide) + mask.to(wide)
    lse = scores.logsumexp(-1)
    weights = scores.sub_(lse.clamp(min=torch.finfo(wide).min)[..., None]).exp_()
    return weights.to(v.dtype) @ v, lse.to(v.dtype)


def causal(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, shape: Shape) -> Tensor:
    """q (n, heads, tokens, width), k, v (n, key heads, tokens, width) -> (n, tokens, heads, value width).

    sinks: (heads,) a score of each head that has no value, or None.
    """
    (n, heads, tokens, _), key_heads = q.shape, k.shape[1]
    k, v = (x if key_heads == heads else x.repeat_interleave(heads // key_heads, 1) for x in (k, v))
    window = shape.window if shape.window is not None and shape.window < tokens else None
    if window is None and shape.softcap is None and sinks is None:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=shape.scale).transpose(1, 2)
    position, parts = torch.arange(tokens, device=q.device), []
    for rows in position.split(BLOCK):
        distance = rows[:, None] - position
        unseen = (distance < 0) if window is None else (distance < 0) | (distance >= window)
        mask = torch.zeros(unseen.shape, dtype=q.dtype, device=q.device).masked_fill_(unseen, -torch.inf)
        out, lse = past(q[:, :, rows] * shape.scale, k, v, mask.expand(n, 1, -1, -1), shape._replace(window=window))
        parts.append(out if sinks is None else out * torch.sigmoid(lse - sinks[:, None])[..., None])
    return torch.cat(parts, 2).transpose(1, 2)

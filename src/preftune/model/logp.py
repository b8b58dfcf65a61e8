"""Log-probabilities of given tokens from hidden states, without ever holding (tokens, vocab).

Only rows whose prediction some objective sees meet the head. Where rows x vocab fits the budget the log-softmax is
kept for the backward pass (three products with the head's matrix); beyond, it is recomputed chunk by chunk (four);
and where the head is frozen, the gradient is taken already in the forward pass, because each log-probability has one
number for its upstream gradient (two).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KEEP = 512 * 2**20  # bytes of log-softmax kept for the backward pass
CHUNK = 96 * 2**20  # bytes of one chunk's logits, and never under 256 rows: smaller products run slower


@dataclass(frozen=True, slots=True)
class Head:
    """The map from hidden state to logits: softcap(scale * (weight @ h + bias)).

    weight: (vocab, width); bias: (vocab,) or None; softcap: c in c * tanh(logits / c), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, width) -> (rows, vocab), in at least fp32."""
        product = torch.nn.functional.linear(hidden, self.weight.to(hidden.dtype), _as(self.bias, hidden))
        logits = product.to(torch.promote_types(product.dtype, torch.float32)).mul_(self.scale)
        return logits if self.softcap is None else (logits / self.softcap).tanh_().mul_(self.softcap)


def _as(bias: Tensor | None, like: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(like.dtype)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Facts of each scored row's distribution that objectives and meters may ask for; (scored,), no gradient.

    squares: log of sum_v p_v^2; entropy: in nats; top: whether the target was the likeliest token.
    """

    squares: Tensor
    entropy: Tensor
    top: Tensor


def head_logp(hidden: Tensor, head: Head, target: Tensor) -> Tensor:
    """(scored, width), (scored,) -> (scored,): log-probability of each target, fp32 (fp64 for fp64 models), in nats."""
    later = torch.is_grad_enabled()
    return _HeadLogp.apply(hidden, head.weight, head.bias, target, head.scale, head.softcap, later)  # type: ignore


def head_statistics(hidden: Tensor, head: Head, target: Tensor) -> Statistics:
    """The same rows' statistics, in chunks; costs one more product with the head, and only when asked."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.no_grad():
        for rows in _chunks(len(target), len(head.weight)):
            logits = head.logits(hidden[rows])
            logp = torch.log_softmax(logits, -1)
            found.append(((2 * logp).logsumexp(-1), -(logp.exp() * logp).sum(-1), logits.argmax(-1) == target[rows]))
    return Statistics(*(torch.cat(part) for part in zip(*found, strict=True)))


def _chunks(rows: int, vocab: int) -> list[slice]:
    """Even chunks of at least 256 rows and about CHUNK bytes."""
    size = max(256, CHUNK // (4 * vocab))
    count = max(1, -(-rows // size))
    size = -(-rows // count) if rows else 1
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


class _HeadLogp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, target, scale, softcap, later):  # type: ignore[override]
        head = Head(weight, bias, scale, softcap)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        result = torch.empty(len(target), dtype=wide, device=hidden.device)
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        ctx.early = later and hidden.requires_grad and not trained
        keep = later and trained and len(target) * len(weight) * result.element_size() <= KEEP
        kept: list[Tensor] = []
        early = torch.empty(hidden.shape, dtype=wide, device=hidden.device) if ctx.early else None
        for rows in _chunks(len(target), len(weight)):
            logp = torch.log_softmax(head.logits(hidden[rows]), -1)
            result[rows] = logp.gather(1, target[rows, None]).squeeze(1)
            if early is not None:  # d logp / d hidden; the upstream number multiplies it in the backward pass
                back = _back(logp, target[rows], None, head, hidden[rows])
                early[rows] = (back.to(hidden.dtype) @ weight.to(hidden.dtype)).to(wide)
            if keep:
                kept.append(logp)
        ctx.save_for_backward(hidden, weight, bias, target, early)
        ctx.kept, ctx.head = kept, (scale, softcap)
        return result

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        hidden, weight, bias, target, early = ctx.saved_tensors
        if early is not None:
            return (early * grad[:, None]).to(hidden.dtype), None, None, None, None, None, None
        head = Head(weight, bias, *ctx.head)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=grad.dtype, device=weight.device)
        grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=grad.dtype, device=bias.device)
        used = weight.to(hidden.dtype)
        for number, rows in enumerate(_chunks(len(target), len(weight))):
            logp = ctx.kept[number] if ctx.kept else torch.log_softmax(head.logits(hidden[rows]), -1)
            back = _back(logp, target[rows], grad[rows], head, hidden[rows])
            if grad_bias is not None:
                grad_bias += back.sum(0)
            back = back.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = back @ used
            if back.dtype == grad_weight.dtype:
                grad_weight.addmm_(back.T, hidden[rows])
            else:
                grad_weight += back.T @ hidden[rows]
        ctx.kept = []
        typed = None if grad_bias is None or bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), typed, None, None, None, None


def _back(logp: Tensor, target: Tensor, grad: Tensor | None, head: Head, hidden: Tensor) -> Tensor:
    """Gradient by the product weight @ h + bias, (rows, vocab), in the buffer of `logp`. grad None means ones."""
    cap = None
    if (
        head.softcap is not None
    ):  # d c tanh(x/c) / dx = 1 - (capped / c)^2, and logp differs from capped by a row constant
        cap = 1 - (head.logits(hidden) / head.softcap) ** 2
    back = logp.exp_().neg_()
    back[torch.arange(len(target), device=target.device), target] += 1
    back *= head.scale if grad is None else (grad * head.scale)[:, None]
    return back if cap is None else back * cap

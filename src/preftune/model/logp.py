"""Log-probabilities of given tokens from hidden states, without ever holding (tokens, vocab).

Only rows whose prediction some objective sees meet the head. Where rows x vocab fits the budget the probabilities are
kept for the backward pass (three products with the head's matrix); beyond, they are made again chunk by chunk (four);
and where the head is frozen, the gradient is taken already in the forward pass, because each log-probability has one
number for its upstream gradient (two).

What costs beside the products is passing over (rows, vocab). It happens once, in the softmax, which takes the logits'
place; upstream numbers multiply the hidden states and not the gradient by the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from preftune.model.parts import product_type

KEEP = 512 * 2**20  # bytes of probabilities kept for the backward pass
CHUNK = 96 * 2**20  # bytes of one chunk's logits, and never under 256 rows: smaller products run slower

FAINT = 1e-30  # probability below which its logarithm is taken from the logits: fp32 ends at 1e-38


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
        """(rows, width) -> (rows, vocab), a new tensor in fp32 or wider."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        weight = self.weight.to(hidden.dtype).T
        if hidden.is_cuda and hidden.dtype != wide:  # there half-precision products are summed and given in fp32
            logits = torch.mm(hidden, weight, out_dtype=wide)
        else:
            logits = torch.mm(hidden, weight).to(wide)
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1:
            logits *= self.scale
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)


class Statistics(NamedTuple):
    """Facts of each scored row's distribution that objectives and meters may ask for; (scored,), no gradient.

    squares: log of sum_v p_v^2; entropy: in nats; top: whether the target was the likeliest token.
    """

    squares: Tensor
    entropy: Tensor
    top: Tensor


def head_logp(hidden: Tensor, head: Head, target: Tensor) -> Tensor:
    """(scored, width), (scored,) -> (scored,): log-probability of each target, fp32 (fp64 for fp64 models), in nats."""
    return _apply(hidden, head, target, False)[0]


def head_logp_and_statistics(hidden: Tensor, head: Head, target: Tensor) -> tuple[Tensor, Statistics]:
    """The same, and statistics of the same rows from the same pass."""
    logp, *found = _apply(hidden, head, target, True)
    return logp, Statistics(*found)


def _apply(hidden: Tensor, head: Head, target: Tensor, told: bool) -> tuple[Tensor, ...]:
    hidden, later = hidden.to(product_type(hidden)), torch.is_grad_enabled()
    return _HeadLogp.apply(hidden, head.weight, head.bias, target, head.scale, head.softcap, later, told)  # type: ignore


def _chunks(rows: int, vocab: int) -> list[slice]:
    """Even chunks of at least 256 rows and about CHUNK bytes."""
    size = max(256, CHUNK // (4 * vocab))
    count = max(1, -(-rows // size))
    size = max(1, -(-rows // count))
    return [slice(first, min(first + size, rows)) for first in range(0, max(1, rows), size)]


class _Chunk(NamedTuple):
    """logp: (rows,) of the targets; pull: (rows, vocab) minus the gradient of logp by scale * (weight @ hidden + bias),
    in the type of the products."""

    logp: Tensor
    pull: Tensor
    statistics: tuple[Tensor, ...]


def _chunk(hidden: Tensor, head: Head, target: Tensor, told: bool) -> _Chunk:
    logits, at_target = head.logits(hidden), target[:, None]
    slopes = None if head.softcap is None else 1 - (logits / head.softcap) ** 2  # of c tanh(x / c)
    share = torch.softmax(logits, 1, out=logits)  # in place: a row is read whole before it is written
    chosen = share.gather(1, at_target)
    logp, faint = chosen.log().squeeze(1), (chosen < FAINT).squeeze(1)
    if bool(faint.any()):
        logp[faint] = torch.log_softmax(head.logits(hidden[faint]), 1).gather(1, at_target[faint]).squeeze(1)
    statistics = ()
    if told:
        squares = 2 * torch.linalg.vector_norm(share, dim=1).log()
        statistics = squares, torch.special.entr(share).sum(1), (chosen == share.amax(1, keepdim=True)).squeeze(1)
    pull = share.scatter_add_(1, at_target, torch.full_like(chosen, -1))  # in the wide type: share may be nearly 1
    pull = pull if slopes is None else pull.mul_(slopes)
    return _Chunk(logp, pull.to(hidden.dtype), statistics)


class _HeadLogp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, target, scale, softcap, later, told):  # type: ignore[override]
        head = Head(weight, bias, scale, softcap)
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        keep = later and trained and len(target) * len(weight) * hidden.element_size() <= KEEP
        early = later and hidden.requires_grad and not trained
        found: list[_Chunk] = []
        kept, of_hidden = [], []
        for rows in _chunks(len(target), len(weight)):
            chunk = _chunk(hidden[rows], head, target[rows], told)
            if early:  # d logp / d hidden; the upstream number multiplies it in the backward pass
                of_hidden.append(_by_hidden(chunk.pull, head))
            if keep:
                kept.append(chunk.pull)
            found.append(chunk._replace(pull=chunk.logp))  # lets go of what is not kept
        ctx.save_for_backward(hidden, weight, bias, target, torch.cat(of_hidden) if early else None)
        ctx.kept, ctx.head = kept, (scale, softcap)
        statistics = [torch.cat(part) for part in zip(*(chunk.statistics for chunk in found), strict=True)]
        ctx.mark_non_differentiable(*statistics)
        return torch.cat([chunk.logp for chunk in found]), *statistics

    @staticmethod
    def backward(ctx, grad, *_):  # type: ignore[override]
        hidden, weight, bias, target, early = ctx.saved_tensors
        if early is not None:
            return (early * grad[:, None]).to(hidden.dtype), *(None,) * 7
        head = Head(weight, bias, *ctx.head)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty(weight.shape, dtype=grad.dtype, device=weight.device)
        grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=grad.dtype, device=bias.device)
        for number, rows in enumerate(_chunks(len(target), len(weight))):
            pull = ctx.kept[number] if ctx.kept else _chunk(hidden[rows], head, target[rows], False).pull
            upstream = grad[rows, None]
            scaled = hidden[rows] * (-head.scale * upstream).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = _by_hidden(pull, head).mul_(upstream)
            if grad_weight.dtype == hidden.dtype:
                torch.addmm(grad_weight, pull.T, scaled, beta=min(1, number), out=grad_weight)
            elif number == 0:
                grad_weight.copy_(pull.T @ scaled)
            else:
                grad_weight += pull.T @ scaled
            if grad_bias is not None:
                grad_bias.addmv_(pull.T.to(grad.dtype), grad[rows] * head.scale, alpha=-1)
        ctx.kept = []
        typed = None if grad_bias is None or bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), typed, *(None,) * 5


def _by_hidden(pull: Tensor, head: Head) -> Tensor:
    """(rows, vocab) -> (rows, width): d logp / d hidden, in fp32 or wider."""
    product = pull @ head.weight.to(pull.dtype)
    return product.to(torch.promote_types(product.dtype, torch.float32)).mul_(-head.scale)

"""Log-probabilities of given tokens from hidden states, without ever holding (tokens, vocab).

Only rows whose prediction some objective sees meet the head. There are three ways to the gradient:

kept             rows x vocab fits into KEEP: probabilities stay for the backward pass; three products with the head.
made again       beyond that: the forward pass goes over chunks of rows, the backward pass over chunks of the
                 vocabulary, where it makes probabilities again; four products, each number of dW is written once.
fused backward   the head is frozen: the forward pass takes dhidden at once; two products.

Held by tests/model/test_logp.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from preftune.model.fused import by_triton, product_type
from preftune.model.reuse import cast, keeps_copies

if TYPE_CHECKING:
    from preftune.model.heads import LanguageHead

KEEP = {"cpu": 64 * 2**20}  # bytes of probabilities kept for the backward pass
KEEP_ELSEWHERE = 2**30
CHUNK = {"cpu": 32 * 2**20}  # bytes of logits at a time, where they are not kept
CHUNK_ELSEWHERE = 512 * 2**20
LEAST = 32, 4096  # rows and tokens of the vocabulary at a time: smaller products run slower

UNDERFLOW = 1e-30  # probability below which its logarithm is taken from the logits: fp32 ends at 1e-38
WAITS = ("cpu",)  # devices that can be asked for a number without a wait for all that they have to do


def head_logp(hidden: Tensor, head: LanguageHead, target: Tensor) -> Tensor:
    """(scored, width), (scored,) -> (scored,): log-probability of each target, fp32 (fp64 for fp64 models), in nats."""
    return _apply(hidden, head, target, with_squares=False)[0]


def head_logp_and_squares(hidden: Tensor, head: LanguageHead, target: Tensor) -> tuple[Tensor, Tensor]:
    """`head_logp`, and log sum_v p_v^2 of each row's distribution from the same pass, (scored,), without gradient."""
    return _apply(hidden, head, target, with_squares=True)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in fp32 or wider; on CUDA products of half-precision numbers are summed and given so."""
    wide = torch.promote_types(left.dtype, torch.float32)
    if left.is_cuda and left.dtype != wide:
        return torch.mm(left, right, out_dtype=wide)
    return torch.mm(left, right).to(wide)


@cache
def adds_wide(device: torch.device) -> bool:
    """Whether a product of half-precision numbers can be added to fp32 numbers in place, without a copy of it."""
    total, ones = torch.zeros(16, 16, device=device), torch.ones(16, 16, dtype=torch.bfloat16, device=device)
    try:
        torch.addmm(total, ones, ones, out_dtype=total.dtype, out=total)
    except (RuntimeError, TypeError):  # on a CPU, and in versions that do not have it
        return False
    return bool((total == 16).all())


def _apply(hidden: Tensor, head: LanguageHead, target: Tensor, *, with_squares: bool) -> tuple[Tensor, Tensor]:
    hidden, grad_enabled = hidden.to(product_type(hidden)), torch.is_grad_enabled()
    return _HeadLogp.apply(hidden, head.weight, head.bias, target, head, grad_enabled, with_squares)  # type: ignore[return-value]


def _slices(count: int, other: int, least: int, device: str) -> list[slice]:
    """Even slices of `count` whose logits, `other` numbers for each, take about CHUNK bytes; at least one slice."""
    size = max(least, CHUNK.get(device, CHUNK_ELSEWHERE) // (4 * max(1, other)))
    size = max(1, -(-count // max(1, -(-count // size))))
    return [slice(first, min(first + size, count)) for first in range(0, max(1, count), size)]


# For a row with hidden state h and target y; the head is W (vocab, width), bias b, scale s and perhaps a soft cap c:
#
#     x = s (W h + b)      z = c tanh(x / c), or x without a cap      (logits)
#     lse = log sum_v exp z_v        p = exp(z - lse)        logp = z_y - lse
#
# Backward, with g the row's upstream number, d loss / d logp. `dlogits` is as of a cross-entropy, d(-logp) / dx: then
# the probabilities in memory need one number a row changed, and not all of them their sign.
#
#     dlogits = (p - onehot(y)) * dz/dx                               dz/dx = 1 - (z / c)^2
#     dhidden = -s g (dlogits W)     dW = dlogits^T (-s g h)          db = dlogits^T (-s g)
#
# Beside the products, what costs is each pass over (rows, vocab). So there is one, the softmax, which takes the place
# of the logits; g and s never meet dlogits, but h, or the product, which have only `width` numbers a row.
class _Rows(NamedTuple):
    """dlogits: (rows, vocab), in the type of the products; log_squares: log sum_v p_v^2, and all others, (rows,)."""

    logp: Tensor
    lse: Tensor
    dlogits: Tensor
    log_squares: Tensor | None


def _rows(hidden: Tensor, head: LanguageHead, target: Tensor, with_squares: bool) -> _Rows:
    if by_triton(hidden):
        from preftune.model import kernels

        return _Rows(*kernels.head_rows(product(hidden, head.weight.T), head, target, hidden.dtype))
    logits, column = head.logits(hidden), target[:, None]
    target_logit, cap_slope = logits.gather(1, column), head.cap_slope(logits)
    largest = None if hidden.device.type in WAITS else logits.max(1, keepdim=True)
    probs = torch.softmax(logits, 1, out=logits)  # in place: a row is read whole before it is written
    target_prob = probs.gather(1, column)
    logp, underflow = target_prob.log().squeeze(1), (target_prob < UNDERFLOW).squeeze(1)
    if largest is not None:  # lse from the likeliest token, whose probability is at least 1 / vocab
        lse = largest.values - probs.gather(1, largest.indices).log()
        logp = torch.where(underflow, (target_logit - lse).squeeze(1), logp)
    elif bool(underflow.any()):  # rare: these rows alone are computed again, the safe way
        logp[underflow] = torch.log_softmax(head.logits(hidden[underflow]), 1).gather(1, column[underflow]).squeeze(1)
    log_squares = 2 * torch.linalg.vector_norm(probs, dim=1).log() if with_squares else None
    # p_y - 1 in the wide type, before rounding: p_y may be nearly 1
    dlogits = probs.scatter_add_(1, column, torch.full_like(target_logit, -1))
    dlogits = dlogits if cap_slope is None else dlogits.mul_(cap_slope)
    return _Rows(logp, target_logit.squeeze(1) - logp, dlogits.to(hidden.dtype), log_squares)


def _dlogits(hidden: Tensor, head: LanguageHead, target: Tensor, lse: Tensor, words: slice) -> Tensor:
    """(rows, words): the dlogits of `_rows`, made again for a slice of the vocabulary."""
    if by_triton(hidden):
        from preftune.model import kernels

        x = product(hidden, head.weight[words].T)
        return kernels.head_dlogits(x, head, target, lse, words.start, hidden.dtype)
    logits = head.logits(hidden, words)
    cap_slope = head.cap_slope(logits)
    dlogits = logits.sub_(lse[:, None]).exp_()
    place = target - words.start
    among = (place >= 0) & (place < dlogits.shape[1])  # no list of rows: its length would have to be waited for
    dlogits.scatter_add_(1, place.clamp(0, dlogits.shape[1] - 1)[:, None], -among.to(dlogits.dtype)[:, None])
    return (dlogits if cap_slope is None else dlogits.mul_(cap_slope)).to(hidden.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, empty: bool) -> None:
    """total += left @ right, or total = left @ right where nothing has been written there yet."""
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, beta=0 if empty else 1, out=total)
    elif adds_wide(left.device):  # products of half-precision numbers are summed in fp32 where they are to go
        torch.addmm(total, left, right, out_dtype=total.dtype, beta=0 if empty else 1, out=total)
    elif empty:
        total.copy_(product(left, right))
    else:
        total += product(left, right)


class _HeadLogp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, target, head, grad_enabled, with_squares):  # type: ignore[override]
        head = replace(head, weight=cast(weight, hidden.dtype))  # once, and not for each chunk of it
        trained = grad_enabled and (weight.requires_grad or (bias is not None and bias.requires_grad))
        fused_backward = grad_enabled and hidden.requires_grad and not trained
        device = hidden.device.type
        probabilities = len(target) * len(weight) * hidden.element_size()
        keep = trained and probabilities <= KEEP.get(device, KEEP_ELSEWHERE)
        chunks = [slice(0, len(target))] if keep else _slices(len(target), len(weight), LEAST[0], device)
        columns, dhidden, dlogits = [], [], None
        for rows in chunks:
            part = _rows(hidden[rows], head, target[rows], with_squares)
            if fused_backward:  # d logp / d hidden, still without g
                dhidden.append(product(part.dlogits, head.weight).mul_(-head.scale))
            dlogits = part.dlogits if keep else None
            columns.append([x for x in (part.logp, part.lse, part.log_squares) if x is not None])
        logp, lse, *log_squares = (torch.cat(parts) for parts in zip(*columns, strict=True))
        ctx.save_for_backward(hidden, weight, bias, target, lse, torch.cat(dhidden) if fused_backward else None)
        ctx.dlogits, ctx.head = dlogits, head if keeps_copies() else replace(head, weight=weight)
        ctx.mark_non_differentiable(*log_squares)
        return logp, *log_squares

    @staticmethod
    def backward(ctx, grad, *_):  # type: ignore[override]
        hidden, weight, bias, target, lse, dhidden = ctx.saved_tensors
        if dhidden is not None:
            return (dhidden * grad[:, None]).to(hidden.dtype), *(None,) * 6
        head, saved, ctx.dlogits = replace(ctx.head, weight=ctx.head.weight.to(hidden.dtype)), ctx.dlogits, None
        g = -head.scale * grad
        scaled_hidden, dhidden = hidden * g.to(hidden.dtype)[:, None], 0
        dbias = None if bias is None else torch.empty_like(bias)
        earlier = weight.grad if head.in_place else None  # the gradient of the packs before, to be added to
        learns = ctx.needs_input_grad[1]
        dweight = (torch.empty_like(weight) if earlier is None else earlier) if learns else None
        whole = [slice(0, len(weight))]
        for words in whole if saved is not None else _slices(len(weight), len(target), LEAST[1], hidden.device.type):
            dlogits = _dlogits(hidden, head, target, lse, words) if saved is None else saved
            if ctx.needs_input_grad[0]:  # not where the head alone is trained
                dhidden = dhidden + product(dlogits, head.weight[words])
            if dweight is not None:
                _add_product(dweight[words], dlogits.T, scaled_hidden, empty=earlier is None)
            if dbias is not None:
                dbias[words] = dlogits.T.to(grad.dtype) @ g
        if head.in_place and learns:
            weight.grad = dweight
        dhidden = (dhidden * g[:, None]).to(hidden.dtype) if ctx.needs_input_grad[0] else None
        return dhidden, None if head.in_place else dweight, dbias, *(None,) * 4

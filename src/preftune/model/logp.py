"""Log-probabilities of given tokens from hidden states, without ever holding (tokens, vocab).

Only rows whose prediction some objective sees meet the head. Where rows x vocab fits the budget the probabilities are
kept for the backward pass (three products with the head's matrix). Beyond, the forward pass goes over some rows after
the others, and the backward pass over parts of the vocabulary, making probabilities again (four products), so that
each number of the matrix's gradient is written once. Where the head is frozen, the gradient is taken already in the
forward pass, because each log-probability has one number for its upstream gradient (two products).

What costs beside the products is passing over (rows, vocab). It happens once, in the softmax, which takes the logits'
place; upstream numbers multiply the hidden states and not the gradient by the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from preftune.model.fused import product_type

KEEP = {"cpu": 64 * 2**20, "cuda": 2**30}  # bytes of probabilities kept for the backward pass
CHUNK = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}  # bytes of logits at a time, where they are not kept
LEAST = 32, 4096  # rows and words of the vocabulary at a time: smaller products run slower

FAINT = 1e-30  # probability below which its logarithm is taken from the logits: fp32 ends at 1e-38


@dataclass(frozen=True, slots=True)
class Head:
    """The map from hidden state to logits: softcap(scale * (weight @ h + bias)).

    weight: (vocab, width); bias: (vocab,) or None; softcap: c in c * tanh(logits / c), or None; in_place: the backward
    pass adds the gradient by weight, a parameter, to its `.grad`.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    in_place: bool = False

    def logits(self, hidden: Tensor, words: slice = slice(None)) -> Tensor:
        """(rows, width) -> (rows, words of the vocabulary), a new tensor in fp32 or wider."""
        logits = _product(hidden, self.weight[words].to(hidden.dtype).T)
        if self.bias is not None:
            logits += self.bias[words]
        if self.scale != 1:
            logits *= self.scale
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def slope(self, logits: Tensor) -> Tensor | None:
        """Of the soft cap, at logits that it has capped: the derivative of c tanh(x / c) is 1 - tanh(x / c)^2."""
        return None if self.softcap is None else 1 - (logits / self.softcap) ** 2


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in fp32 or wider; on CUDA products of half-precision numbers are summed and given so."""
    wide = torch.promote_types(left.dtype, torch.float32)
    if left.is_cuda and left.dtype != wide:
        return torch.mm(left, right, out_dtype=wide)
    return torch.mm(left, right).to(wide)


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
    return _HeadLogp.apply(hidden, head.weight, head.bias, target, head, later, told)  # type: ignore[return-value]


def _slices(count: int, other: int, least: int, device: str) -> list[slice]:
    """Even slices of `count` whose logits, `other` numbers for each, take about CHUNK bytes; at least one."""
    size = max(least, CHUNK[device] // (4 * max(1, other)))
    size = max(1, -(-count // max(1, -(-count // size))))
    return [slice(first, min(first + size, count)) for first in range(0, max(1, count), size)]


class _Rows(NamedTuple):
    """logp, normalizer: (rows,) of the targets, and log of the sum of exp(logits); pull: (rows, vocab) minus the
    gradient of logp by scale * (weight @ hidden + bias), in the type of the products."""

    logp: Tensor
    normalizer: Tensor
    pull: Tensor
    statistics: tuple[Tensor, ...]


def _rows(hidden: Tensor, head: Head, target: Tensor, told: bool) -> _Rows:
    logits, at_target = head.logits(hidden), target[:, None]
    chosen, slope = logits.gather(1, at_target), head.slope(logits)
    share = torch.softmax(logits, 1, out=logits)  # in place: a row is read whole before it is written
    wanted = share.gather(1, at_target)
    logp, faint = wanted.log().squeeze(1), (wanted < FAINT).squeeze(1)
    if bool(faint.any()):
        logp[faint] = torch.log_softmax(head.logits(hidden[faint]), 1).gather(1, at_target[faint]).squeeze(1)
    statistics = ()
    if told:
        squares = 2 * torch.linalg.vector_norm(share, dim=1).log()
        statistics = squares, torch.special.entr(share).sum(1), (wanted == share.amax(1, keepdim=True)).squeeze(1)
    pull = share.scatter_add_(1, at_target, torch.full_like(chosen, -1))  # in the wide type: share may be nearly 1
    pull = pull if slope is None else pull.mul_(slope)
    return _Rows(logp, chosen.squeeze(1) - logp, pull.to(hidden.dtype), statistics)


def _pull(hidden: Tensor, head: Head, target: Tensor, normalizer: Tensor, words: slice) -> Tensor:
    """The same pull as of `_rows`, of some words of the vocabulary."""
    logits = head.logits(hidden, words)
    slope = head.slope(logits)
    pull = logits.sub_(normalizer[:, None]).exp_()
    here = torch.nonzero((target >= words.start) & (target < words.stop)).squeeze(1)
    pull[here, target[here] - words.start] -= 1
    return (pull if slope is None else pull.mul_(slope)).to(hidden.dtype)


def _collect(into: Tensor, left: Tensor, right: Tensor, *, fresh: bool) -> None:
    """Add left @ right to `into`, or put it there where nothing has been written yet."""
    if into.dtype == left.dtype:
        torch.addmm(into, left, right, beta=0 if fresh else 1, out=into)
    elif fresh:
        into.copy_(_product(left, right))
    else:
        into += _product(left, right)


class _HeadLogp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, target, head, later, told):  # type: ignore[override]
        trained = later and (weight.requires_grad or (bias is not None and bias.requires_grad))
        early = later and hidden.requires_grad and not trained
        device = hidden.device.type
        keep = trained and len(target) * len(weight) * hidden.element_size() <= KEEP[device]
        found, of_hidden, pull = [], [], None
        for rows in [slice(0, len(target))] if keep else _slices(len(target), len(weight), LEAST[0], device):
            part = _rows(hidden[rows], head, target[rows], told)
            if early:  # d logp / d hidden; the upstream number multiplies it in the backward pass
                of_hidden.append(_product(part.pull, weight.to(hidden.dtype)).mul_(-head.scale))
            pull = part.pull if keep else None
            found.append((part.logp, part.normalizer, *part.statistics))
        logp, normalizer, *statistics = (torch.cat(numbers) for numbers in zip(*found, strict=True))
        ctx.save_for_backward(hidden, weight, bias, target, normalizer, torch.cat(of_hidden) if early else None)
        ctx.pull, ctx.head = pull, head
        ctx.mark_non_differentiable(*statistics)
        return logp, *statistics

    @staticmethod
    def backward(ctx, grad, *_):  # type: ignore[override]
        hidden, weight, bias, target, normalizer, early = ctx.saved_tensors
        if early is not None:
            return (early * grad[:, None]).to(hidden.dtype), *(None,) * 6
        head, kept, ctx.pull = ctx.head, ctx.pull, None
        upstream = -head.scale * grad
        scaled, drawn = hidden * upstream.to(hidden.dtype)[:, None], 0
        grad_bias = None if bias is None else torch.empty_like(bias)
        before = weight.grad if head.in_place else None
        learns = ctx.needs_input_grad[1]
        into = (torch.empty_like(weight) if before is None else before) if learns else None
        parts = (
            _slices(len(weight), len(target), LEAST[1], hidden.device.type) if kept is None else [slice(0, len(weight))]
        )
        for words in parts:
            pull = _pull(hidden, head, target, normalizer, words) if kept is None else kept
            drawn = drawn + _product(pull, weight[words].to(pull.dtype))
            if into is not None:
                _collect(into[words], pull.T, scaled, fresh=before is None)
            if grad_bias is not None:
                grad_bias[words] = pull.T.to(grad.dtype) @ upstream
        if head.in_place and learns:
            weight.grad = into
        return (drawn * upstream[:, None]).to(hidden.dtype), None if head.in_place else into, grad_bias, *(None,) * 4

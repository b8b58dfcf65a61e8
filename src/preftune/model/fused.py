"""Norm, rotation, gated MLP and tied embedding as most families have them, in fewer passes over memory, with less kept.

transformers writes them as chains of elementwise operations; each reads and writes whole activations, and several keep
theirs for the backward pass. On a CPU that is a sixth of a step's time and half of its memory. `slim` puts these in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS = ("variance_epsilon", "eps")  # under which names norms keep what is added to the mean square
LINEAR = ("gate_proj", "up_proj", "down_proj")


class RMSNorm(torch.autograd.Function):
    """y = w * x / rms(x) over the last axis (arXiv 1910.07467, eq. 4), in fp32 or wider and then given as `dtype`.

    Keeps x and one number a row.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide, size = _wide(x), x.shape[-1]
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(size).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        return (wide * inverse).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, inverse, weight = ctx.saved_tensors
        wide, grad, used, size = _wide(x), _wide(grad).contiguous(), _wide(weight), x.shape[-1]
        # LayerNorm's kernel, told that the mean is 0; what it takes away because a mean would move is given back
        back, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, wide, [size], torch.zeros_like(inverse), inverse, used, None, [True, True, False]
        )
        back.addcmul_(inverse, (grad.view(-1, size) @ used).div_(size).view(inverse.shape))
        return back.to(x.dtype), of_weight.to(weight.dtype), None, None


class Rotation(torch.autograd.Function):
    """Rotary embedding (arXiv 2104.09864) by cos and sin that broadcast to x, but for their width. Keeps no x."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turned(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return turned(grad, cos, sin, -1), None, None


def turned(x: Tensor, cos: Tensor, sin: Tensor, way: int) -> Tensor:
    """x turned by the angles, or back where way is -1. The first numbers of its last axis, as many as there are angles,
    are turned, their halves being the two coordinates; the others stay."""
    width = cos.shape[-1]
    half = width // 2
    out = x * cos if width == x.shape[-1] else torch.cat([x[..., :width] * cos, x[..., width:]], -1)
    out[..., :half].addcmul_(x[..., half:width], sin[..., :half], value=-way)
    out[..., half:width].addcmul_(x[..., :half], sin[..., half:], value=way)
    return out


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """In place of a family's `apply_rotary_pos_emb`."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return Rotation.apply(q, cos, sin), Rotation.apply(k, cos, sin)  # type: ignore[return-value]


class GatedMLP(torch.autograd.Function):
    """(silu(x @ gate^T) * (x @ up^T)) @ down^T (arXiv 2002.05202). Keeps the two products of x, not what follows."""

    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        gated, raised = rows @ gate.T, rows @ up.T
        ctx.save_for_backward(rows, gated, raised, gate, up, down)
        return (nn.functional.silu(gated).mul_(raised) @ down.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, gated, raised, gate, up, down = ctx.saved_tensors
        of_rows, of_gate, of_up, of_down = ctx.needs_input_grad
        shape, grad = grad.shape, grad.reshape(-1, grad.shape[-1])
        active, inner = nn.functional.silu(gated), grad @ down
        d_down = grad.T @ (active * raised) if of_down else None
        d_raised = active.mul_(inner)
        d_gated = torch.ops.aten.silu_backward(inner.mul_(raised), gated)
        d_rows = (d_gated @ gate).addmm_(d_raised, up).view(*shape[:-1], -1) if of_rows else None
        return d_rows, d_gated.T @ rows if of_gate else None, d_raised.T @ rows if of_up else None, d_down


class Lookup(torch.autograd.Function):
    """Rows of an embedding's matrix that has its gradient already: the head's, where the two are one.

    The rows' gradient is added to it in place, where torch would fill a second matrix with zeros and add that.
    """

    @staticmethod
    def forward(ctx, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids, weight)
        ctx.padding = padding
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        ids, weight = ctx.saved_tensors
        ids, grad = ids.reshape(-1), grad.reshape(-1, grad.shape[-1])
        if ctx.padding is not None:  # torch's rule: this row does not learn
            grad = grad * (ids != ctx.padding)[:, None]
        into = torch.zeros_like(weight) if weight.grad is None else weight.grad
        into.index_add_(0, ids, grad.to(into.dtype))
        return None, into if weight.grad is None else None, None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product_type(x: Tensor) -> torch.dtype:
    """The type in which linear layers work on x just now."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def norm(self: nn.Module, x: Tensor) -> Tensor:
    """Forward of a norm whose weight is as the paper's."""
    return _norm(x, self.get_parameter("weight"), self)


def norm_from_zero(self: nn.Module, x: Tensor) -> Tensor:
    """Forward of a norm whose weight is kept as its difference to one (Gemma)."""
    return _norm(x, 1 + _wide(self.get_parameter("weight")), self)


def _norm(x: Tensor, weight: Tensor, part: nn.Module) -> Tensor:
    eps = eps_of(part)
    assert eps is not None
    if x.device.type != "cpu":  # there torch has a kernel
        wide = torch.promote_types(x.dtype, weight.dtype)
        return nn.functional.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps).to(product_type(x))
    return RMSNorm.apply(x, weight, eps, product_type(x))  # type: ignore[return-value]


def eps_of(part: nn.Module) -> float | None:
    return next((value for name in EPS if isinstance(value := getattr(part, name, None), float)), None)


def mlp(self: nn.Module, x: Tensor) -> Tensor:
    """Forward of a gated MLP."""
    dtype = product_type(x)
    weights = (self.get_parameter(f"{name}.weight").to(dtype) for name in LINEAR)
    return GatedMLP.apply(x.to(dtype), *weights)  # type: ignore[return-value]


def lookup(self: nn.Module, ids: Tensor) -> Tensor:
    """Forward of an embedding whose matrix is that of a head which adds to `.grad` in place."""
    return Lookup.apply(ids, self.get_parameter("weight"), self.padding_idx)  # type: ignore[return-value]

"""Norm, rotation, gated MLP and tied embedding as most families have them, in fewer passes over memory, with less kept.

transformers writes them as chains of elementwise operations; each reads and writes whole activations, and several keep
theirs for the backward pass. On a CPU that is a sixth of a step's time and half of its memory. `fuse` swaps these in.
Held by tests/model/test_fused.py.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from preftune.model.reuse import cast
from preftune.pack.batch import add_rows

EPS = ("variance_epsilon", "eps")  # under which names norms keep what is added to the mean square
LINEAR = ("gate_proj", "up_proj", "down_proj")
TRITON = False  # whether CUDA takes kernels.py; to be decided by what bench/gpu.py measures there


def by_triton(x: Tensor) -> bool:
    """Whether Triton's kernels work on these numbers."""
    return TRITON and x.is_cuda and x.dtype != torch.float64 and find_spec("triton") is not None


# With r = 1 / sqrt(mean(x^2) + eps), one number a row, and x^ = r x:      y = w * x^
#
#     dx = r (w dy - x^ mean(w dy x^))        dw = sum over rows of dy x^
#
# LayerNorm's backward kernel with a mean of 0 gives r (w dy - mean(w dy) - x^ mean(w dy x^)) in one pass. It subtracts
# mean(w dy) because there the mean moves with x; here it does not, so r mean(w dy) is added again.
class RMSNorm(torch.autograd.Function):
    """w * x / rms(x) over the last axis (arXiv 1910.07467, eq. 4), in fp32 or wider and then given as `dtype`.

    Keeps x and one number a row.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide, size = _wide(x), x.shape[-1]
        r = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(size).add_(eps).rsqrt_()
        ctx.save_for_backward(x, r, weight)
        return (wide * r).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, r, weight = ctx.saved_tensors
        wide, dy, w, size = _wide(x), _wide(dy).contiguous(), _wide(weight), x.shape[-1]
        dx, dw, _ = torch.ops.aten.native_layer_norm_backward(
            dy, wide, [size], torch.zeros_like(r), r, w, None, [True, True, False]
        )
        dx.addcmul_(r, (dy.view(-1, size) @ w).div_(size).view(r.shape))
        return dx.to(x.dtype), dw.to(weight.dtype), None, None


class KernelRMSNorm(torch.autograd.Function):
    """`RMSNorm` by torch's kernels for GPUs, one pass each way. They want x and weight in one type, and torch would
    keep x in that; here it is kept as it came, which for queries and keys is half of it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(x.dtype, weight.dtype)
        y, r = torch.ops.aten._fused_rms_norm(x.to(wide), weight.shape, weight.to(wide), eps)
        ctx.save_for_backward(x, r, weight)
        return y.to(dtype)

    @staticmethod
    def backward(ctx, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, r, weight = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, weight.dtype)
        dx, dw = norm_backward(dy.to(wide), x.to(wide), weight.shape, r, weight.to(wide), ctx.needs_input_grad[:2])
        return None if dx is None else dx.to(x.dtype), None if dw is None else dw.to(weight.dtype), None, None


norm_backward = (
    torch.ops.aten._fused_rms_norm_backward
)  # a name, because there is none for a CPU: tests have a stand-in


# y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin for each pair of coordinates. The rotation is orthogonal, so its backward
# pass is the rotation by the opposite angle, and x is not needed.
class Rotation(torch.autograd.Function):
    """Rotary embedding (arXiv 2104.09864) by cos and sin that broadcast to x, but for their width. Keeps no x."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotated(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return rotated(dy, cos, sin, -1), None, None


def rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """x rotated by sign times the angles.

    Of its last axis the first numbers, as many as there are angles, are rotated, the two halves of them being the
    coordinates; the others stay.
    """
    width = cos.shape[-1]
    half = width // 2
    y = x * cos if width == x.shape[-1] else torch.cat([x[..., :width] * cos, x[..., width:]], -1)
    y[..., :half].addcmul_(x[..., half:width], sin[..., :half], value=-sign)
    y[..., half:width].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return y


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """In place of a family's `apply_rotary_pos_emb`."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return Rotation.apply(q, cos, sin), Rotation.apply(k, cos, sin)  # type: ignore[return-value]


# g = x Wg^T, u = x Wu^T, a = silu(g):      y = (a * u) Wd^T
#
#     dh = dy Wd        du = a * dh        dg = silu'(g) * u * dh        dx = dg Wg + du Wu
#     dWd = dy^T (a * u)      dWu = du^T x      dWg = dg^T x
#
# a and a * u are made again from g and u: one cheap pass in place of two kept activations, the widest of a layer.
class GatedMLP(torch.autograd.Function):
    """(silu(x @ gate^T) * (x @ up^T)) @ down^T (arXiv 2002.05202). Keeps x and its two products only."""

    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        g, u = rows @ gate.T, rows @ up.T
        ctx.save_for_backward(rows, g, u, gate, up, down)
        if by_triton(g):
            from preftune.model import kernels

            return (kernels.gate_forward(g, u) @ down.T).view(*x.shape[:-1], -1)
        return (nn.functional.silu(g).mul_(u) @ down.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, g, u, gate, up, down = ctx.saved_tensors
        x_learns, gate_learns, up_learns, down_learns = ctx.needs_input_grad
        shape, dy = dy.shape, dy.reshape(-1, dy.shape[-1])
        dh = dy @ down
        if by_triton(g):
            from preftune.model import kernels

            h, dg, du = kernels.gate_backward(g, u, dh)
            ddown = dy.T @ h if down_learns else None
        else:
            a = nn.functional.silu(g)
            ddown = dy.T @ (a * u) if down_learns else None
            du = a.mul_(dh)
            dg = torch.ops.aten.silu_backward(dh.mul_(u), g)
        dx = (dg @ gate).addmm_(du, up).view(*shape[:-1], -1) if x_learns else None
        return dx, dg.T @ x if gate_learns else None, du.T @ x if up_learns else None, ddown


class TiedEmbedding(torch.autograd.Function):
    """Rows of an embedding's matrix that has its gradient already: the head's, where the two are one.

    The rows' gradient is added to it in place, where torch would fill a second matrix with zeros and add that.
    """

    @staticmethod
    def forward(ctx, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids, weight)
        ctx.padding = padding
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        ids, weight = ctx.saved_tensors
        ids, dy = ids.reshape(-1), dy.reshape(-1, dy.shape[-1])
        if ctx.padding is not None:  # torch's rule: this row does not learn
            dy = dy * (ids != ctx.padding)[:, None]
        dweight = torch.zeros_like(weight) if weight.grad is None else weight.grad
        add_rows(dweight, ids, dy.to(dweight.dtype))
        return None, dweight if weight.grad is None else None, None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product_type(x: Tensor) -> torch.dtype:
    """The type in which linear layers work on x just now."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def norm(self: nn.Module, x: Tensor) -> Tensor:
    """Forward of a norm whose weight is as the paper's."""
    return _norm(x, self.get_parameter("weight"), self)


def norm_from_zero(self: nn.Module, x: Tensor) -> Tensor:
    """Forward of a norm whose weight is kept as its difference to one (Gemma)."""
    return _norm(x, 1 + _wide(self.get_parameter("weight")), self)


def _norm(x: Tensor, weight: Tensor, part: nn.Module) -> Tensor:
    eps = eps_of(part)
    assert eps is not None
    function = KernelRMSNorm if x.is_cuda else RMSNorm
    return function.apply(x, weight, eps, product_type(x))  # type: ignore[return-value]


def eps_of(part: nn.Module) -> float | None:
    return next((value for name in EPS if isinstance(value := getattr(part, name, None), float)), None)


def mlp(self: nn.Module, x: Tensor) -> Tensor:
    """Forward of a gated MLP."""
    dtype = product_type(x)
    weights = (cast(self.get_parameter(f"{name}.weight"), dtype) for name in LINEAR)
    return GatedMLP.apply(x.to(dtype), *weights)  # type: ignore[return-value]


def tied_embedding(self: nn.Module, ids: Tensor) -> Tensor:
    """Forward of an embedding whose matrix is that of a head which adds to `.grad` in place."""
    return TiedEmbedding.apply(ids, self.get_parameter("weight"), self.padding_idx)  # type: ignore[return-value]

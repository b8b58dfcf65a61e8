"""Products with an adapter beside a frozen matrix, and the gated MLP of them, in fewer passes and with less kept.

peft adds the product of the thin matrices to that of the base as a chain of five operations, each of which reads and
writes whole activations, and keeps two of them. `fuse` swaps these in. Held by tests/model/test_fused.py.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from preftune.model.fused import LINEAR, product_type
from preftune.model.reuse import cast

if TYPE_CHECKING:
    from peft.tuners.lora import Linear


class Thin(NamedTuple):
    """The active adapters of a linear layer as one. down: (rank, in); up: (out, rank); scale multiplies their product.
    Several stand one after the other, with their ranks added."""

    down: Tensor
    up: Tensor
    scale: float


# With t = x A^T, (rows, rank):      y = x W^T + b + s t B^T        (arXiv 2106.09685, section 4.1)
#
#     dt = s dy B        dA = dt^T x        dB = s dy^T t        dx = dy W + dt A
class AdaptedProduct(torch.autograd.Function):
    """x @ W^T + b + s (x @ A^T) @ B^T for a frozen W and b. Keeps x and x @ A^T."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        t = rows @ down.T
        y = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        ctx.save_for_backward(rows, t, weight, down, up)
        ctx.scale = scale
        return y.addmm_(t, up.T, alpha=scale).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, t, weight, down, up = ctx.saved_tensors
        shape, dy = dy.shape, dy.reshape(-1, dy.shape[-1])
        dt = (dy @ up).mul_(ctx.scale)
        dx = (dy @ weight).addmm_(dt, down).view(*shape[:-1], -1) if ctx.needs_input_grad[0] else None
        return dx, None, None, dt.T @ x, (dy.T @ t).mul_(ctx.scale), None


# The gated MLP of fused.py with a thin product beside each of its three; g, u and dh as there, thin ones marked by t:
#
#     g = x Wg^T + s tg Bg^T      u = x Wu^T + s tu Bu^T      h = silu(g) * u      y = h Wd^T + s td Bd^T
#     dtd = s dy Bd      dh = dy Wd + dtd Ad      dtg = s dg Bg      dtu = s du Bu
#     dx = dg Wg + du Wu + dtg Ag + dtu Au
class AdaptedMLP(torch.autograd.Function):
    """(silu(gate(x)) * up(x)) through down, each a frozen matrix with an adapter. Keeps x, g, u and three thin ones.

    thin: down, up of gate_proj, up_proj and down_proj, one after the other; scales: theirs.
    """

    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, scales: tuple[float, ...], *thin: Tensor):
        rows, (a_gate, b_gate, a_up, b_up, a_down, b_down) = x.reshape(-1, x.shape[-1]), thin
        t_gate, t_up = rows @ a_gate.T, rows @ a_up.T
        g = (rows @ gate.T).addmm_(t_gate, b_gate.T, alpha=scales[0])
        u = (rows @ up.T).addmm_(t_up, b_up.T, alpha=scales[1])
        h = nn.functional.silu(g).mul_(u)
        t_down = h @ a_down.T
        ctx.save_for_backward(rows, g, u, t_gate, t_up, t_down, gate, up, down, *thin)
        ctx.scales = scales
        return (h @ down.T).addmm_(t_down, b_down.T, alpha=scales[2]).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, g, u, t_gate, t_up, t_down, gate, up, down, a_gate, b_gate, a_up, b_up, a_down, b_down = ctx.saved_tensors
        shape, dy = dy.shape, dy.reshape(-1, dy.shape[-1])
        s_gate, s_up, s_down = ctx.scales
        dt_down, db_down = (dy @ b_down).mul_(s_down), (dy.T @ t_down).mul_(s_down)
        a, dh = nn.functional.silu(g), (dy @ down).addmm_(dt_down, a_down)
        da_down = dt_down.T @ (a * u)
        du = a.mul_(dh)
        dg = torch.ops.aten.silu_backward(dh.mul_(u), g)
        dt_gate, db_gate = (dg @ b_gate).mul_(s_gate), (dg.T @ t_gate).mul_(s_gate)
        dt_up, db_up = (du @ b_up).mul_(s_up), (du.T @ t_up).mul_(s_up)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dg @ gate).addmm_(du, up).addmm_(dt_gate, a_gate).addmm_(dt_up, a_up).view(*shape[:-1], -1)
        return dx, None, None, None, None, dt_gate.T @ x, db_gate, dt_up.T @ x, db_up, da_down, db_down


def is_plain(part: nn.Module) -> bool:
    """Whether a part is a linear layer of torch with plain adapters of peft, all of one scale: no magnitudes (DoRA), no
    dropout, no bias of their own."""
    if "peft" not in sys.modules:  # then nobody has put an adapter into a model
        return False
    from peft.tuners.lora import Linear

    if type(part) is not Linear or type(part.base_layer) is not nn.Linear or not part.lora_A:
        return False
    scales = {part.scaling[name] for name in part.lora_A}
    biases = [side[name].bias for side in (part.lora_A, part.lora_B) for name in side]
    dropouts = [type(part.lora_dropout[name]) for name in part.lora_A]
    return (
        len(scales) == 1 and not any(b is not None for b in biases) and not part.lora_variant and not part.merged
        and all(kind is nn.Identity for kind in dropouts) and not part.base_layer.weight.requires_grad
    )  # fmt: skip


def is_plain_mlp(part: nn.Module) -> bool:
    """Whether the three layers of a gated MLP are all plain, and without bias."""
    layers = [part.get_submodule(name) for name in LINEAR]
    return all(is_plain(layer) and layer.get_submodule("base_layer").bias is None for layer in layers)


def randomize(part: nn.Module) -> None:
    """Give thin matrices numbers that show: as adapters begin, their product is 0 whatever is done with them."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in part.named_parameters():
        if "lora_" in name:
            parameter.data = (0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter)


def thin_of(layer: Linear, dtype: torch.dtype) -> Thin | None:
    """The active adapters of a plain layer in this type; None where none is on."""
    if layer.disable_adapters or layer.merged:
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if not names:
        return None
    sides = (layer.lora_A, layer.lora_B)
    down, up = ([side[name].get_parameter("weight").to(dtype) for name in names] for side in sides)
    if len(names) == 1:
        return Thin(down[0], up[0], layer.scaling[names[0]])
    return Thin(torch.cat(down), torch.cat(up, 1), layer.scaling[names[0]])


def adapted(self: Linear, x: Tensor) -> Tensor:
    """Forward of a linear layer with plain adapters."""
    dtype = product_type(x)
    thin, base = thin_of(self, dtype), self.base_layer
    if thin is None:
        return base(x)
    bias = None if base.bias is None else base.bias.to(dtype)
    return AdaptedProduct.apply(x.to(dtype), cast(base.weight, dtype), bias, *thin)  # type: ignore[return-value]


def adapted_mlp(self: nn.Module, x: Tensor) -> Tensor:
    """Forward of a gated MLP whose three layers have plain adapters."""
    dtype = product_type(x)
    layers = [self.get_submodule(name) for name in LINEAR]
    thin = [thin_of(layer, dtype) for layer in layers]  # pyright: ignore[reportArgumentType]  `fuse` has looked
    if any(each is None for each in thin):
        gate, up, down = layers
        return down(self.get_submodule("act_fn")(gate(x)) * up(x))
    weights = [cast(layer.get_parameter("base_layer.weight"), dtype) for layer in layers]
    scales = tuple(each.scale for each in thin if each)
    matrices = [matrix for each in thin if each for matrix in each[:2]]
    return AdaptedMLP.apply(x.to(dtype), *weights, scales, *matrices)  # type: ignore[return-value]

"""AdamW over what is trained (decoupled weight decay: arXiv 1711.05101), and what it keeps of each parameter.

Held by tests/training/test_optimizer.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, zeros

from preftune.errors import UserError
from preftune.model.weights import Weights, local
from preftune.training.config import Optim
from preftune.training.rounding import (
    FIRST_MOMENT,
    SECOND_MOMENT,
    Stream,
    blocks_of,
    random_bits,
    rounded_to_bfloat16,
)

CHUNK = {"cpu": 2**16, "cuda": 2**24}  # numbers that are gone through at a time: on a CPU they stay in its cache
CODES = {"exp_avg": FIRST_MOMENT, "exp_avg_sq": SECOND_MOMENT}
SCALES = "_scales"  # what the name of a moment's scales ends with


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that an optimizer keeps of a parameter. signed: whether its numbers may be negative; on_host: whether
    it is on the CPU, wherever the parameter is. One with axes is cut among ranks as the parameter is: along the first.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    signed: bool = False
    on_host: bool = False

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def zeros(self, parameter: Tensor) -> Tensor:
        """What it is before the first update of this parameter."""
        if isinstance(parameter, DTensor) and self.shape:
            mesh, placements = parameter.device_mesh, parameter.placements
            return zeros(self.shape, dtype=self.dtype, device_mesh=mesh, placements=placements)
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device(parameter))

    def device(self, parameter: Tensor) -> torch.device:
        """Where it is."""
        return torch.device("cpu") if self.on_host else parameter.device


class FusedAdamW(torch.optim.AdamW):
    """torch's, for weights in fp32 or wider with moments of their type."""

    def moments(self, parameter: Tensor) -> dict[str, Moment]:
        """All that is kept of a parameter after its first update, by name."""
        shape, dtype = tuple(parameter.shape), parameter.dtype
        return {
            "step": Moment((), torch.float32),
            "exp_avg": Moment(shape, dtype, signed=True),
            "exp_avg_sq": Moment(shape, dtype),
        }


# Neither library of 8-bit optimizers does both, rounding and 8 bits, here: bitsandbytes 0.50 rounds weights to the
# nearest, and torchao 0.18 takes its random bits from the global generator, so that a resumed run or a shard rounds
# otherwise, and compiles a program for every shape on first use, for which it needs a C++ compiler.
class RoundedAdamW(torch.optim.Optimizer):
    """AdamW in fp32 arithmetic whose weights in bfloat16 are rounded at random, and whose moments may have 8 bits.

    eight_bits: keep the moments of matrices in 8 bits, in blocks of a row; those of vectors stay in fp32. Random bits
    follow from the seed, a parameter's place among the trained ones, its count of updates, and a number's index.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float, seed: int, eight_bits: bool
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.seed, self.eight_bits = seed, eight_bits

    def moments(self, parameter: Tensor) -> dict[str, Moment]:
        """All that is kept of a parameter after its first update, by name."""
        shape, step = tuple(parameter.shape), {"step": Moment((), torch.float32, on_host=True)}
        if not self._in_codes(parameter):
            return step | {name: Moment(shape, torch.float32, code.signed) for name, code in CODES.items()}
        scales = (*shape[:-1], blocks_of(shape[-1]))
        codes = {name: Moment(shape, code.dtype, code.signed) for name, code in CODES.items()}
        return step | codes | {f"{name}{SCALES}": Moment(scales, torch.float32) for name in CODES}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        trained = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        for place, (parameter, group) in enumerate(trained):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state.update({name: moment.zeros(parameter) for name, moment in self.moments(parameter).items()})
            state["step"] += 1
            self._update(parameter, parameter.grad, state, group, place)

    def _in_codes(self, parameter: Tensor) -> bool:
        return self.eight_bits and parameter.dim() >= 2

    def _update(
        self, parameter: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any], place: int
    ) -> None:
        """AdamW's equations on some rows at a time, in fp32; what is written back is rounded."""
        step, coded = int(state["step"]), self._in_codes(parameter)
        beta, beta_square = group["betas"]
        rate, bias, bias_square = group["lr"], 1 - beta**step, 1 - beta_square**step
        streams = [Stream.of(self.seed, place, step, number) for number in range(2)]
        weights, grads = _rows(parameter), _rows(grad)
        moments = {name: _rows(tensor) for name, tensor in state.items() if name != "step"}
        rows, columns = len(weights), weights.shape[1]
        size = max(1, CHUNK[weights.device.type] // max(1, columns))  # a rank may have no part of a vector
        for first in range(0, rows, size):
            part = slice(first, first + size)
            w, g = weights[part].float(), grads[part].float()
            start = _first_number(parameter) + first * columns
            bits = [random_bits(stream, start, w.shape, w.device) for stream in streams[: 1 + coded]]
            mean, square = (_read(moments, name, part, coded) for name in CODES)
            mean.lerp_(g, 1 - beta)
            square.mul_(beta_square).addcmul_(g, g, value=1 - beta_square)
            if coded:  # else they stand there in fp32 already
                for name, moment, bits_of_moment in zip(CODES, (mean, square), bits, strict=True):
                    moments[name][part], moments[name + SCALES][part] = CODES[name].encode(moment, bits_of_moment)
            root = square.sqrt().div_(bias_square**0.5).add_(group["eps"])
            w.mul_(1 - rate * group["weight_decay"]).addcdiv_(mean, root, value=-rate / bias)
            weights[part] = rounded_to_bfloat16(w, bits[0]) if weights.dtype == torch.bfloat16 else w


Optimizer = FusedAdamW | RoundedAdamW


def adamw(weights: Weights, optim: Optim, seed: int = 0) -> Optimizer:
    """AdamW over the trainable parameters; weight decay on matrices only. seed: of random rounding."""
    kinds: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    if not weights.trained():
        raise UserError("nothing of this model learns: all its parameters are frozen.", location="model.path",
                        hint="Set requires_grad of those that are to learn.")  # fmt: skip
    for name, parameter in weights.trained().items():
        kinds.setdefault((parameter.dim() < 2, weights.rate(name)), []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": 0.0 if is_vector else optim.weight_decay, "rate": rate}
        for (is_vector, rate), parameters in sorted(kinds.items(), key=lambda item: item[0])
    ]
    eight_bits = optim.state == "int8"
    if eight_bits or any(p.dtype == torch.bfloat16 for p in weights.trained().values()):
        return RoundedAdamW(groups, betas=optim.betas, eps=optim.eps, seed=seed, eight_bits=eight_bits)
    return FusedAdamW(groups, lr=optim.rate, betas=optim.betas, eps=optim.eps, fused=True)


def _read(moments: dict[str, Tensor], name: str, part: slice, coded: bool) -> Tensor:
    """Rows of a moment in fp32: a copy where they are codes, else the rows themselves."""
    rows = moments[name][part]
    return CODES[name].decode(rows, moments[name + SCALES][part]) if coded else rows


def _rows(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor as rows of its last axis; a vector is one row."""
    part = local(tensor).detach()
    return part.view(-1, part.shape[-1]) if part.dim() > 1 else part.view(1, -1)


def _first_number(parameter: Tensor) -> int:
    """Index in the whole parameter of the first number that this rank has."""
    if not isinstance(parameter, DTensor) or not parameter.placements[0].is_shard():
        return 0
    mesh, (rows, *row) = parameter.device_mesh, parameter.shape
    return mesh.get_local_rank() * -(-rows // mesh.size()) * math.prod(row)

"""Bases in 4 and 8 bits: bitsandbytes quantizes and dequantizes, and every pass over them takes the same way.

Held by tests/model/test_quantized.py.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from preftune.errors import UserError
from preftune.model.fused import product_type

QUANTIZED = ("nf4", "int8")
KEY = "model.weights"


def loading(weights: str, compute: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is given for these weights. compute: type of the products, and of what is not quantized.

    Raises UserError where bitsandbytes is missing.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{weights} needs bitsandbytes, which is not installed.", location=KEY,
                        hint="pip install 'preftune[quant]'")  # fmt: skip
    from transformers import BitsAndBytesConfig

    if weights == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:  # the type is given: else a layer takes that of the first input that it meets
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                    bnb_4bit_compute_dtype=compute)  # fmt: skip
    return {"quantization_config": config, "device_map": {"": device}, "dtype": compute}


class DequantizedProduct(torch.autograd.Function):
    """x @ W^T for a W that is kept in few bits, and whole only while it is multiplied with. Keeps no x."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return x @ layer.dequantized(x.dtype).T

    @staticmethod
    def backward(ctx, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return dy @ ctx.layer.dequantized(dy.dtype), None


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose matrix is kept in few bits, and multiplied with in the type of the products.

    In place of those of bitsandbytes 0.50, which take different ways: on a CPU a 4-bit layer takes a kernel in bfloat16
    where no gradient is asked for, 0.13 nats a token off that of training, and fails where rows are not a multiple of
    32; an 8-bit layer rounds its input to 8 bits as well, and looks for outliers in all rows of a pack, so that a
    difference in the last digit becomes one of 0.3 nats, and no row is independent of the others.
    """

    codes: Tensor
    scales_0: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        from bitsandbytes.nn.modules import Linear4bit

        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.kind = "nf4" if isinstance(layer, Linear4bit) else "int8"
        weight: Any = layer.weight
        self.state = weight.quant_state if self.kind == "nf4" else None
        if self.state is not None:  # as one row: of rows shorter than a block of 64 it would make other numbers
            self.state.shape = torch.Size((1, self.numbers))
        self.register_buffer("codes", weight.data)
        scales = [weight.SCB] if self.state is None else self.state.as_dict(packed=True).values()
        for index, tensor in enumerate(tensor for tensor in scales if isinstance(tensor, Tensor)):
            self.register_buffer(f"scales_{index}", tensor)  # for the digest; the state of nf4 holds the same numbers
        self.bias = layer.bias

    @property
    def numbers(self) -> int:
        """Of the matrix."""
        return self.in_features * self.out_features

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]  what peft asks for size and place
        return self.dequantized(torch.float32)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """(out, in) in this type."""
        if self.state is None:
            return (self.codes.float() * (self.scales_0.float() / 127).view(-1, 1)).to(dtype)
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.codes, self.state).view(self.out_features, -1).to(dtype)

    def forward(self, input: Tensor) -> Tensor:
        dtype = product_type(input)
        y = DequantizedProduct.apply(input.to(dtype), self)
        return y if self.bias is None else y + self.bias.to(dtype)  # type: ignore[return-value]


def make_exact(module: nn.Module) -> None:
    """Put ours in place of the layers of bitsandbytes."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    for name, part in [*module.named_modules()]:
        if isinstance(part, (Linear4bit, Linear8bitLt)):
            above, _, last = name.rpartition(".")
            module.get_submodule(above).add_module(last, QuantizedLinear(part))


def quantization(module: nn.Module) -> str:
    """What is quantized, and by which version, for the name of a numerics class; empty where nothing is."""
    kinds = {part.kind for part in module.modules() if isinstance(part, QuantizedLinear)}
    return "-".join([*sorted(kinds), f"bnb{'.'.join(version('bitsandbytes').split('.')[:2])}"]) if kinds else ""

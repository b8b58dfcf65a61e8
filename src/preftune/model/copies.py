"""Weights in the type of the products: cast once a step, and not once a pack. Held by tests/model/test_fused.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

Copies = dict[tuple[int, bool], tuple[Tensor, Tensor]]  # by id and whether gradients are asked for; id stays taken
_COPIES: ContextVar[Copies | None] = ContextVar("copies", default=None)


@contextmanager
def copies_kept() -> Iterator[None]:
    """Within it `cast` makes one copy of a weight, however many packs go by. Nothing may change the weight there."""
    token = _COPIES.set({})
    try:
        yield
    finally:
        _COPIES.reset(token)


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in this type. A copy that is kept goes through several backward passes: a cast saves nothing."""
    copies = _COPIES.get()
    if copies is None or weight.dtype == dtype:
        return weight.to(dtype)
    key = id(weight), torch.is_grad_enabled()
    if key not in copies:
        copies[key] = weight, weight.to(dtype)
    return copies[key][1]


def keeps_copies() -> bool:
    """Whether this is within `copies_kept`."""
    return _COPIES.get() is not None

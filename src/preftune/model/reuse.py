"""What is made once and used by several passes: weights in the type of the products, which are cast once a step and not
once a pack, and what attention gave in the first pass of a layer that is checkpointed, small and expensive to make
again. Held by tests/model/test_fused.py, tests/model/test_layouts.py and tests/model/test_varlen.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import NamedTuple

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


class SavedOutputs(NamedTuple):
    """tensors: in the order in which they were made; replay: this is the second pass, which takes them out again."""

    tensors: list[Tensor]
    replay: bool


_SAVED: ContextVar[SavedOutputs | None] = ContextVar("saved", default=None)


def saved_outputs() -> SavedOutputs | None:
    """Where a layer that is checkpointed keeps what attention gives; None in others."""
    return _SAVED.get()


def keep_outputs() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a layer's first and second pass, for torch's `context_fn`."""
    tensors: list[Tensor] = []
    return _saving(SavedOutputs(tensors, replay=False)), _saving(SavedOutputs(tensors, replay=True))


@contextmanager
def _saving(saved: SavedOutputs) -> Iterator[None]:
    token = _SAVED.set(saved)
    try:
        yield
    finally:
        _SAVED.reset(token)

"""What attention gave in the first pass of a layer that is checkpointed: small, and expensive to make again.

Held by tests/model/test_layouts.py and tests/model/test_varlen.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from torch import Tensor


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

"""A rank that has exited, as torch tells the others, in one sentence. Held by tests/laws/test_ranks_end.py and
tests/laws/test_shards.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.distributed as dist

from preftune.errors import STOPPED, UserError, is_out_of_memory


@contextlib.contextmanager
def collective() -> Iterator[None]:
    """An exchange of ours, which fails for no other reason than a rank that has exited, or memory."""
    try:
        yield
    except RuntimeError as error:  # what torch raises where the other end of a connection is gone
        if is_out_of_memory(error):
            raise
        raise _rank_gone(error) from error


@contextlib.contextmanager
def exchanging() -> Iterator[None]:
    """Work of a model in which torch exchanges tensors by itself: where that fails because another rank has exited, the
    error says so, and no fault of the model is seen in it."""
    try:
        yield
    except RuntimeError as error:
        if not _is_of_exchange(error):
            raise
        raise _rank_gone(error) from error


def _is_of_exchange(error: Exception) -> bool:
    """Whether torch raised it in an exchange: NCCL and the store have a class of their own, gloo names its source."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _rank_gone(error: Exception) -> UserError:
    hint = "What was saved is whole: go on with --resume."
    return UserError(f"another rank has exited ({cause_of(error)}).", hint=hint, code=STOPPED)


def cause_of(error: Exception) -> str:
    """The first sentence of torch's message, without the place in its source."""
    return str(error).split("] ", 1)[-1].split(". ")[0][:100]

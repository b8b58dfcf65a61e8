"""Modes of torch that a caller may be in. Held by tests/laws/test_replaced.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from preftune.errors import UserError


@contextmanager
def own_modes() -> Iterator[None]:
    """Gradients can be taken in this block, also where the caller is in `torch.no_grad` or `torch.inference_mode`.

    Raises UserError in `torch.autocast`, also in one that is not enabled: its copies of weights last as long as the
    outermost such block, so that every update after the first would be computed from the weights of before.
    """
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    if depth > 1:
        raise UserError("this call stands in torch.autocast, which would keep copies of weights over updates.",
                        location="model.compute", hint="Call it outside: this key says in which type products are "
                        "taken.")  # fmt: skip
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield

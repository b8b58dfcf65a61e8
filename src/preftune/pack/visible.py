"""Who sees whom: the one line, and the same thing cut into dense blocks for kernels that know no trees.

A run is a maximal chain of rows: they share one `end`. Seen from a run [a, b) whose subtree ends at e, attention
is a causal square over the run and a full rectangle of the queries [b, e) on its keys. Where a whole subtree is
small, one masked square over [a, e) costs less than many slivers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def visible(query: Tensor, key: Tensor, end: Tensor) -> Tensor:
    """Whether row `query` sees row `key` (any broadcastable integer shapes); `end` (tokens,)."""
    return (key <= query) & (query < end[key])


@dataclass(frozen=True, slots=True)
class Block:
    """Queries [q0, q1) on keys [k0, k1). causal and masked are squares; full is a rectangle below them."""

    q0: int
    q1: int
    k0: int
    k1: int
    kind: Literal["causal", "full", "masked"]


def blocks(end: np.ndarray, small: int) -> list[Block]:
    """Blocks that cover each visible (query, key) once and, masked squares aside, nothing else.

    end: (tokens,) int64 of a trie. small: subtrees that branch and have at most so many rows become one masked square.
    """
    starts = np.concatenate([[0], np.flatnonzero(np.diff(end)) + 1, [len(end)]])
    found: list[Block] = []
    done = 0
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if start < done:  # inside a masked square already taken
            continue
        last = int(end[start])
        if stop < last and last - start <= small:
            found.append(Block(start, last, start, last, "masked"))
            done = last
            continue
        found.append(Block(start, stop, start, stop, "causal"))
        if stop < last:
            found.append(Block(stop, last, start, stop, "full"))
    return found

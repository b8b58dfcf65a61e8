"""Which row sees which: the one line, and the same relation cut into blocks that dense products can work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from preftune.pack.trie import Trie


def visible(query: Tensor, key: Tensor, end: Tensor) -> Tensor:
    """Whether row `query` sees row `key` (any broadcastable integer shapes); `end` (tokens,)."""
    return (key <= query) & (query < end[key])


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows [start, stop) see all of their common `ancestors`, (ancestors,) from the root down, and some of each other.

    chain: each row is the parent of the next, so that what they see of each other is the causal triangle.
    """

    start: int
    stop: int
    ancestors: np.ndarray
    chain: bool

    @property
    def rows(self) -> int:
        return self.stop - self.start


def blocks(trie: Trie, max_rows: int) -> list[Block]:
    """Blocks of at most `max_rows` rows that cover each visible (query, key) once, in the order of the rows.

    A block is a piece of a chain, or whole subtrees that hang from one row; two trees never share a block.
    """
    end, position = trie.end, trie.position
    chain_ends = np.append(np.flatnonzero(np.diff(end)), len(end) - 1)  # last rows of maximal chains
    path = np.empty(int(position.max(initial=0)) + 1, np.int64)  # rows from the root to the newest row
    cut: list[Block] = []
    start = 0
    while start < len(end):
        depth, stop = position[start], start
        while stop < len(end) and position[stop] == depth and end[stop] - start <= max_rows:
            stop = int(end[stop])
            if depth == 0:
                break
        if stop == start:
            chain_end = int(chain_ends[np.searchsorted(chain_ends, start)])
            stop = min(chain_end + 1, start + max_rows)
        chain = bool((np.diff(position[start:stop]) == 1).all())
        cut.append(Block(start, stop, path[:depth].copy(), chain))
        path[position[start:stop]] = np.arange(start, stop)  # of several rows at one depth the newest stays
        start = stop
    return cut

"""Sequences merged by shared prefix, written as one row a distinct token.

Sorted lexicographically, each sequence shares with the ones before it exactly what it shares with the last of
them, so one comparison a sequence builds the tree, and the rows come out depth-first: every subtree is a
contiguous range. `end[k]`, one past k's last descendant, is then the whole structure: token q sees token k iff
k <= q < end[k]. The same relation is cut into blocks that dense products can work on. Held by tests/pack/test_trie.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Trie:
    """All int64. ids, position, end: (tokens,); paths: the rows of each given sequence, in the order given."""

    ids: np.ndarray
    position: np.ndarray
    end: np.ndarray
    paths: tuple[np.ndarray, ...]

    @property
    def tokens(self) -> int:
        return len(self.ids)


def build(sequences: Sequence[np.ndarray]) -> Trie:
    """Merge integer sequences, none of them empty, by shared prefix. Cost: linear in their tokens, and one sort."""
    paths: list[np.ndarray] = [np.empty(0, np.int64)] * len(sequences)
    new_ids: list[np.ndarray] = []
    ends: list[tuple[np.ndarray, int]] = []
    last, last_path, count = np.empty(0, np.int64), np.empty(0, np.int64), 0
    for index in lexicographic_order(sequences):
        ids = np.asarray(sequences[index], np.int64)
        shared = common_prefix(last, ids)
        if shared < len(last_path):
            ends.append((last_path[shared:], count))  # nothing below these rows can follow any more
        path = np.concatenate([last_path[:shared], np.arange(count, count + len(ids) - shared)])
        new_ids.append(ids[shared:])
        count += len(ids) - shared
        last, last_path, paths[index] = ids, path, path
    end = np.full(count, count, np.int64)
    for rows, stop in ends:
        end[rows] = stop
    position = np.empty(count, np.int64)
    for path in paths:
        position[path] = np.arange(len(path))
    return Trie(np.concatenate(new_ids), position, end, tuple(paths))


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading tokens two sequences share."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


def distinct_tokens(sequences: Sequence[np.ndarray]) -> int:
    """Rows that `build` would give, without building."""
    ordered = [sequences[index] for index in lexicographic_order(sequences)]
    return sum(map(len, ordered)) - sum(map(common_prefix, ordered, ordered[1:]))


def lexicographic_order(sequences: Sequence[np.ndarray]) -> list[int]:
    """Indices of integer sequences in lexicographic order; equal ones stay in theirs."""
    keys = [np.asarray(s, dtype=">u4").tobytes() for s in sequences]  # big-endian bytes compare as the tokens do
    return sorted(range(len(keys)), key=keys.__getitem__)


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

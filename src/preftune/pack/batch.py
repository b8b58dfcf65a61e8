"""Groups of one pack as tensors: the trie, which of its rows the head must score, and who owns each score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from preftune.pack.trie import Trie, build
from preftune.pack.visible import Block, blocks, visible
from preftune.tokens.groups import TokenGroup

T = TypeVar("T")
WORTH = 0.9  # share of rows read above which moving rows about costs more than it saves
BLOCK = 64  # rows of a block of attention: fewer make slivers, more compute what nobody sees (bench/limit.py)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A block of rows [start, stop) on the device.

    seen: the keys of its stretch that some of them see, themselves last; mask: (rows, n) 0 where a row sees one of the
    last n of these, else -inf; what stands before those is seen by all of the block.
    """

    start: int
    stop: int
    seen: slice
    mask: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Blocks along one path. keys: its rows from the root down, so that what a block sees is one run of them."""

    keys: slice | Tensor
    pieces: tuple[Piece, ...]

    def take(self, x: Tensor) -> Tensor:
        """(heads, tokens, width) -> (heads, keys, width): a view where the path is one run of rows, else a copy."""
        return x[:, self.keys] if isinstance(self.keys, slice) else x.index_select(1, self.keys)

    def room(self, x: Tensor) -> Tensor:
        """(heads, keys, width) to add to: the view itself, or zeros that `add` brings home."""
        own = self.take(x)
        return own if isinstance(self.keys, slice) else own.zero_()

    def add(self, x: Tensor, own: Tensor) -> None:
        """Add what was gathered in `room` to x."""
        if not isinstance(self.keys, slice):
            x.index_add_(1, self.keys, own)


@dataclass(frozen=True, eq=False)
class Layout:
    """What the attention must know of a pack; travels through the model as one keyword.

    end, position: (rows,) as in the trie, then fill; trie: the same in numpy, for cutting blocks on the host.
    read: (read,) the rows whose last hidden state anyone reads, in order, or None where telling them apart is not worth
    its while; only_read: leave out blocks that hold none of them. calls: one entry a layer that asked. What one layer
    worked out is kept for the next.
    """

    end: Tensor
    position: Tensor
    trie: Trie
    read: Tensor | None = None
    only_read: bool = False
    calls: list[int] = field(default_factory=list)
    _kept: dict[object, Any] = field(default_factory=dict)

    def once(self, what: object, make: Callable[[], T]) -> T:
        """make(), kept under a name for the layers that follow."""
        if what not in self._kept:
            self._kept[what] = make()
        return self._kept[what]

    def stretches(self, window: int | None) -> list[Stretch]:
        """The blocks that cover what is visible; window: positions that a row looks back on, itself included."""
        return self.once(window, lambda: [self._stretch(found, window) for found in self._along()])

    def _along(self) -> list[list[Block]]:
        """Blocks, together where one goes on along the path of the one before."""
        along: list[list[Block]] = []
        for block in blocks(self.trie, BLOCK):
            before = along[-1][-1] if along else None
            if before is not None and before.chain and len(block.above) == len(before.above) + before.rows:
                along[-1].append(block)
            else:
                along.append([block])
        if not self.only_read or self.read is None:
            return along
        read = self.read.cpu().numpy()
        holds = lambda block: np.searchsorted(read, block.start) < np.searchsorted(read, block.stop)  # noqa: E731
        return [kept for found in along if (kept := list(filter(holds, found)))]

    @cached_property
    def last_layer(self) -> Layout:
        """The same for a layer of which only the read rows matter; the others come out as zeros."""
        return replace(self, only_read=True, _kept={})

    def _stretch(self, along: Sequence[Block], window: int | None) -> Stretch:
        last = along[-1]
        path = np.append(last.above, np.arange(last.start, last.stop))
        run = int(path[-1] - path[0]) + 1 == len(path)
        keys = slice(int(path[0]), last.stop) if run else torch.from_numpy(path).to(self.end.device)
        return Stretch(keys, tuple(self._piece(block, window) for block in along))

    def _piece(self, block: Block, window: int | None) -> Piece:
        depth = len(block.above)
        first = 0 if window is None else max(0, depth + 1 - window)
        own = torch.arange(block.start, block.stop, device=self.end.device)
        unseen = ~visible(own[:, None], own[None, :], self.end)
        if window is not None:
            position = torch.cat([torch.arange(first, depth, device=own.device), self.position[own]])
            far = self.position[own][:, None] - position[None, :] >= window
            far[:, depth - first :] |= unseen
            unseen = far
        mask = torch.zeros(unseen.shape, device=own.device).masked_fill_(unseen, float("-inf"))
        return Piece(block.start, block.stop, slice(first, depth + block.rows), mask)

    @cached_property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """Rows of all paths in the order of the leaves, where each leaf's own rows and its path start, the longest.

        A leaf's own rows are those that no leaf before it has.
        """
        paths = sorted({path[-1]: path for path in self.trie.paths}.values(), key=lambda path: path[-1])
        kept = [p for p, after in zip(paths, [*paths[1:], None], strict=True) if after is None or p[-1] not in after]
        last = np.array([path[-1] for path in kept])
        own, whole = np.diff(last, prepend=-1), np.array([len(path) for path in kept])
        firsts, starts = (torch.from_numpy(np.cumsum([0, *n])).to(self.end.device, torch.int32) for n in (own, whole))
        rows = torch.from_numpy(np.concatenate(kept)).to(self.end.device)
        return rows, firsts, starts, int(own.max()), int(whole.max())

    @cached_property
    def depth(self) -> int:
        """Longest path, in tokens."""
        return int(self.trie.position.max()) + 1


@dataclass(frozen=True, slots=True)
class Batch:
    """One pack.

    ids: (rows,) those of the trie, then fill. The last token of a response is nobody's context, so it is no row.
    source, target: (scored,) the row whose hidden state predicts, and the token it must predict; distinct, then fill.
    member: (members,) for every token of every response, in the order groups, responses, tokens: its place in scored.
    response: (members,) the response that it belongs to, 0..responses-1 in the same order.
    tokens_naive: tokens of every prompt with every response, as trainers without sharing compute them.
    """

    groups: tuple[TokenGroup, ...]
    ids: Tensor
    layout: Layout
    source: Tensor
    target: Tensor
    member: Tensor
    response: Tensor
    responses: int
    tokens_naive: int

    @property
    def tokens(self) -> int:
        """Distinct ones, without fill."""
        return self.layout.trie.tokens

    def sum(self, token_values: Tensor) -> Tensor:
        """(members,) -> (responses,): per-token values summed over each response.

        Added in fp64, which costs nothing here, and returned in the type that came: a sum of some hundred numbers
        one after the other loses two digits of fp32.
        """
        summed = torch.zeros(self.responses, dtype=torch.float64, device=token_values.device)
        return summed.index_add(0, self.response, token_values.double()).to(token_values.dtype)


def collate(groups: Sequence[TokenGroup], device: torch.device | str = "cpu", multiple: int = 1) -> Batch:
    """The pack of these groups on a device. Every prompt and every response has at least one token.

    multiple: rows, read rows and scored tokens are filled up to one; nobody sees the fill, nor does it see anybody.
    """
    sequences = [np.concatenate([g.prompt, r]) for g in groups for r in g.responses]
    prompts = [len(g.prompt) for g in groups for _ in g.responses]
    trie = build([s[:-1] for s in sequences])
    source = np.concatenate([path[n - 1 :] for path, n in zip(trie.paths, prompts, strict=True)])
    target = np.concatenate([s[n:] for s, n in zip(sequences, prompts, strict=True)]).astype(np.int64)
    counts = [len(s) - n for s, n in zip(sequences, prompts, strict=True)]
    pairs, member = np.unique(np.stack([source, target]), axis=1, return_inverse=True)
    source, target = np.pad(pairs, ((0, 0), (0, -pairs.shape[1] % multiple)), "edge")
    fill = -trie.tokens % multiple
    rows, read = trie.tokens + fill, np.unique(source)
    unread = np.setdiff1d(np.arange(rows), read)
    read = np.union1d(read, unread[len(unread) - -len(read) % multiple :])

    def put(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.int64)).to(device, non_blocking=True)

    layout = Layout(
        end=put(np.pad(trie.end, (0, fill), constant_values=rows)),
        position=put(np.pad(trie.position, (0, fill))),
        trie=trie,
        read=put(read) if len(read) < WORTH * rows else None,
    )
    return Batch(
        groups=tuple(groups),
        ids=put(np.pad(trie.ids, (0, fill))),
        layout=layout,
        source=put(source),
        target=put(target),
        member=put(member.reshape(-1)),
        response=put(np.repeat(np.arange(len(sequences)), counts)),
        responses=len(sequences),
        tokens_naive=sum(map(len, sequences)),
    )

"""What attention needs to know of a batch: the trie, cut into blocks that dense products can work on.

In a pack most rows are prompt, and only the last of each prompt predicts a scored token. The last layer's queries,
attention, output projection and MLP are therefore computed for the rows that are read, and put back among zeros.
Exact: no other row's hidden state leaves the model. Held by tests/model/test_layouts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from preftune.model.probe import decoder
from preftune.pack.batch import Batch, to_device
from preftune.pack.trie import Block, Trie, blocks, visible

T = TypeVar("T")
MIN_SAVING = 0.1  # share of unread rows below which moving rows about costs more than leaving them out saves
BLOCK = 64  # rows of a block: fewer make products too thin, more compute what nobody sees (bench/limit.py)


class Shape(NamedTuple):
    """What a family does to its scores: times `scale`, softcap c in c * tanh(score / c), window in positions."""

    scale: float
    softcap: float | None = None
    window: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class QueryBlock:
    """Rows [start, stop) of queries.

    keys: those of its path that some of the rows see, the rows themselves last; mask: (rows, n), 0 where a row sees
    one of the last n keys, else -inf. All rows see the keys before those.
    """

    start: int
    stop: int
    keys: slice
    mask: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PathRun:
    """Query blocks along one path. path: its rows from the root down, so that the keys of a block are one slice."""

    path: slice | Tensor
    blocks: tuple[QueryBlock, ...]

    def gather(self, x: Tensor) -> Tensor:
        """(heads, tokens, width) -> (heads, path, width): a view where the path is one run of rows, else a copy."""
        return x[:, self.path] if isinstance(self.path, slice) else x.index_select(1, self.path)

    def grad_buffer(self, dx: Tensor) -> Tensor:
        """(heads, path, width) to add gradients to: a view of dx, or zeros that `scatter_add` adds to it."""
        buffer = self.gather(dx)
        return buffer if isinstance(self.path, slice) else buffer.zero_()

    def scatter_add(self, dx: Tensor, buffer: Tensor) -> None:
        """Add what `grad_buffer` collected to dx."""
        if not isinstance(self.path, slice):
            dx.index_add_(1, self.path, buffer)


class Paths(NamedTuple):
    """Sequences of a variable-length call. keys: (keys,) the rows of each path, one path after the other; by_row:
    (keys,) the places in `keys` of row 0, then those of row 1 and so on; counts: (rows,) how many paths a row is on;
    cu_q, cu_k: (sequences + 1,) int32, where the queries and keys of each begin; max_q, max_k: of the longest."""

    keys: Tensor
    by_row: Tensor
    counts: Tensor
    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int


@dataclass(frozen=True, eq=False)
class Layout:
    """What travels through the model beside a batch, as one keyword.

    end, position: (rows,) as in the batch; trie: the same in numpy, for cutting blocks on the host.
    read: (read,) the rows whose last hidden state is read, or None where leaving out the others saves too little.
    only_read: leave out blocks without a read row. calls: one entry a layer that asked, which shows whether the layout
    reached all of them. What one layer works out is kept for the next.
    """

    end: Tensor
    position: Tensor
    trie: Trie
    read: Tensor | None = None
    only_read: bool = False
    calls: list[int] = field(default_factory=list)
    _memo: dict[object, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch) -> Layout:
        """The layout of a batch, made once however often the batch goes through a model."""
        if batch not in _LAYOUTS:
            saves = len(batch.read) < (1 - MIN_SAVING) * len(batch.ids)
            _LAYOUTS[batch] = cls(batch.end, batch.position, batch.trie, batch.read if saves else None)
        return _LAYOUTS[batch]

    def memo(self, key: object, make: Callable[[], T]) -> T:
        """make(), kept under a key for the layers that follow."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def path_runs(self, window: int | None) -> list[PathRun]:
        """The blocks that cover all that is visible; window: positions that a row looks back on, itself included."""
        return self.memo(window, lambda: [self._path_run(run, window) for run in self._by_path()])

    def _by_path(self) -> list[list[Block]]:
        """Blocks, in one list where each continues the path of the one before it."""
        runs: list[list[Block]] = []
        for block in blocks(self.trie, BLOCK):
            previous = runs[-1][-1] if runs else None
            if previous and previous.chain and len(block.ancestors) == len(previous.ancestors) + previous.rows:
                runs[-1].append(block)
            else:
                runs.append([block])
        if not self.only_read or self.read is None:
            return runs
        read = self.read.cpu().numpy()
        runs = [[b for b in run if np.searchsorted(read, b.start) < np.searchsorted(read, b.stop)] for run in runs]
        return [run for run in runs if run]

    @cached_property
    def last_layer(self) -> Layout:
        """The layout for a layer of which only the read rows matter; the others come out as zeros."""
        return replace(self, only_read=True, _memo={})

    def _path_run(self, run: Sequence[Block], window: int | None) -> PathRun:
        last = run[-1]
        path = np.append(last.ancestors, np.arange(last.start, last.stop))
        contiguous = int(path[-1] - path[0]) + 1 == len(path)
        rows = slice(int(path[0]), last.stop) if contiguous else torch.from_numpy(path).to(self.end.device)
        return PathRun(rows, tuple(self._query_block(block, window) for block in run))

    def _query_block(self, block: Block, window: int | None) -> QueryBlock:
        depth = len(block.ancestors)
        first = 0 if window is None else max(0, depth + 1 - window)
        rows = torch.arange(block.start, block.stop, device=self.end.device)
        unseen = ~visible(rows[:, None], rows[None, :], self.end)  # all ancestors are seen: they need no mask
        if window is not None:
            position = torch.cat([torch.arange(first, depth, device=rows.device), self.position[rows]])
            too_far = self.position[rows][:, None] - position[None, :] >= window
            too_far[:, depth - first :] |= unseen
            unseen = too_far
        mask = torch.zeros(unseen.shape, device=rows.device).masked_fill_(unseen, float("-inf"))
        return QueryBlock(block.start, block.stop, slice(first, depth + block.rows), mask)

    @cached_property
    def varlen(self) -> Paths:
        """The trie as the sequences of one variable-length call: its leaves in order, then the fill as one more.

        The queries of a leaf are the rows that no leaf before has, which are contiguous; its keys are the rows of its
        whole path.
        """
        paths = sorted({path[-1]: path for path in self.trie.paths}.values(), key=lambda path: path[-1])
        leaves = [p for p, after in zip(paths, [*paths[1:], None], strict=True) if after is None or p[-1] not in after]
        rows, fill = len(self.end), np.arange(self.trie.tokens, len(self.end))
        leaves += [fill] if len(fill) else []  # else a kernel would leave these rows as it met them
        keys = np.concatenate(leaves)
        n_q, n_k = np.diff([path[-1] for path in leaves], prepend=-1), np.array([len(path) for path in leaves])
        cu_q, cu_k = (np.cumsum([0, *counts]) for counts in (n_q, n_k))
        by_row, counts = np.argsort(keys, kind="stable"), np.bincount(keys, minlength=rows)
        sent = to_device((keys, by_row, counts, cu_q, cu_k), self.end.device)
        starts = [cu.to(torch.int32) for cu in sent[3:]]
        return Paths(sent[0], sent[1], sent[2], starts[0], starts[1], int(n_q.max()), int(n_k.max()))

    @cached_property
    def depth(self) -> int:
        """The longest path, in tokens."""
        return int(self.trie.position.max()) + 1


_LAYOUTS: WeakKeyDictionary[Batch, Layout] = WeakKeyDictionary()  # a layout holds no batch, so that both can go


class PrunedLayer:
    """Hooks on a layer. They learn which rows are read from the layout that its attention gets, also when activations
    are recomputed in the backward pass; they keep no pack alive."""

    def __init__(self, layer: nn.Module, parts: list[nn.Module]) -> None:
        self._layout: ref[Layout] | None = None
        layer.register_forward_pre_hook(self._forget)
        layer.register_forward_hook(self._forget)
        layer.get_submodule("self_attn").register_forward_pre_hook(self._begin, with_kwargs=True)
        for part in parts:
            part.register_forward_pre_hook(self._select)
            part.register_forward_hook(self._among_zeros)

    def _forget(self, *_: object) -> None:
        self._layout = None

    def _begin(self, _: nn.Module, args: tuple, kwargs: dict[str, object]) -> tuple[tuple, dict[str, object]]:
        layout = kwargs.get("trie")
        if not isinstance(layout, Layout) or layout.read is None:
            self._layout = None
            return args, kwargs
        self._layout = ref(layout)
        return args, {**kwargs, "trie": layout.last_layer}

    def _select(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        layout = self._layout and self._layout()
        if layout is None or layout.read is None:
            return args
        return (args[0].index_select(1, layout.read), *args[1:])

    def _among_zeros(self, _: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        layout = self._layout and self._layout()
        if layout is None or layout.read is None:
            return out
        zeros = out.new_zeros(out.shape[0], len(layout.end), out.shape[2])
        return zeros.index_copy(1, layout.read, out)


def prune_last_layer(module: PreTrainedModel) -> None:
    """Skip rows nobody reads in the last layer. Does nothing to layers of an unusual build, or a second time."""
    count = module.config.get_text_config().num_hidden_layers
    lists = [part for part in decoder(module).modules() if isinstance(part, nn.ModuleList)]
    layer = next((layers[-1] for layers in lists if len(layers) == count), None)
    parts = row_by_row(layer) if layer is not None else []
    if layer is not None and parts and not layer._forward_pre_hooks:
        PrunedLayer(layer, parts)


def row_by_row(layer: nn.Module) -> list[nn.Module]:
    """Parts of a layer of the usual families that map each row by itself; empty for other layers."""
    named = dict(layer.named_modules())
    parts = [named.get(name) for name in ("self_attn.q_proj", "self_attn.o_proj")]
    if not all(isinstance(part, nn.Linear) for part in parts):
        return []
    mlp = named.get("mlp")
    if mlp is not None and not any("expert" in name or "router" in name for name, _ in mlp.named_modules()):
        parts.append(mlp)  # a mixture of experts returns more than the rows
    return [part for part in parts if part is not None]

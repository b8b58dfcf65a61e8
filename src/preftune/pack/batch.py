"""Groups of one pack as tensors: the trie, which of its rows the head must score, and who owns each score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from preftune.data.groups import TokenGroup
from preftune.pack.trie import Trie, build
from preftune.pack.visible import Block, blocks


@dataclass(eq=False)
class Layout:
    """What the attention must know of a pack; travels through the model as one keyword.

    end, position: (tokens,) as in the trie; trie: the same in numpy, for cutting blocks on the host.
    masks and leaves keep what one layer worked out for the next; calls counts the layers that asked.
    """

    end: Tensor
    position: Tensor
    trie: Trie
    masks: dict[tuple[Block, torch.dtype], Tensor] = field(default_factory=dict)
    leaves: tuple[Tensor, Tensor, Tensor, int, int] | None = None
    calls: list[int] = field(default_factory=list)

    def blocks(self, small: int) -> list[Block]:
        """The visible blocks, cut once for all layers."""
        if small not in self._cut:
            self._cut[small] = blocks(self.trie.end, small)
        return self._cut[small]

    @cached_property
    def _cut(self) -> dict[int, list[Block]]:
        return {}

    @cached_property
    def depth(self) -> int:
        """Longest path, in tokens."""
        return int(self.trie.position.max()) + 1


@dataclass(frozen=True, slots=True)
class Batch:
    """One pack.

    ids: (tokens,). The last token of a response is nobody's context, so it is no row of the trie.
    source, target: (scored,) the row whose hidden state predicts, and the token it must predict; distinct.
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
        return len(self.ids)

    def sum(self, token_values: Tensor) -> Tensor:
        """(members,) -> (responses,): per-token values summed over each response.

        Added in fp64, which costs nothing here, and returned in the type that came: a sum of some hundred numbers
        one after the other loses two digits of fp32.
        """
        summed = torch.zeros(self.responses, dtype=torch.float64, device=token_values.device)
        return summed.index_add(0, self.response, token_values.double()).to(token_values.dtype)


def collate(groups: Sequence[TokenGroup], device: torch.device | str = "cpu") -> Batch:
    """The pack of these groups on a device. Every prompt and every response has at least one token."""
    sequences = [np.concatenate([g.prompt, r]) for g in groups for r in g.responses]
    prompts = [len(g.prompt) for g in groups for _ in g.responses]
    trie = build([s[:-1] for s in sequences])
    source = np.concatenate([path[n - 1 :] for path, n in zip(trie.paths, prompts, strict=True)])
    target = np.concatenate([s[n:] for s, n in zip(sequences, prompts, strict=True)]).astype(np.int64)
    counts = [len(s) - n for s, n in zip(sequences, prompts, strict=True)]
    pairs, member = np.unique(np.stack([source, target]), axis=1, return_inverse=True)

    def put(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.int64)).to(device, non_blocking=True)

    return Batch(
        groups=tuple(groups),
        ids=put(trie.ids),
        layout=Layout(put(trie.end), put(trie.position), trie),
        source=put(pairs[0]),
        target=put(pairs[1]),
        member=put(member.reshape(-1)),
        response=put(np.repeat(np.arange(len(sequences)), counts)),
        responses=len(sequences),
        tokens_naive=sum(map(len, sequences)),
    )

"""Groups of one pack as tensors: the trie, the rows that a head reads, and the response that each answer belongs to.

Held by tests/pack/test_trie.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from preftune.pack.trie import Trie, build
from preftune.tokens.groups import TokenGroup

Reads = Literal["tokens", "ends"]  # rows before every token of a response, or the row of its last token


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Batch:
    """One pack.

    ids, position, end: (rows,) as in the trie, then fill; trie: the same in numpy, without fill.
    read: (read,) the rows whose last hidden state is read, ascending; some others make up the multiple.
    source, target: (scored,) the row whose hidden state is read, and the token that it must predict, or, where the
    last token of each response is read, that token; distinct, then fill.
    member: (members,) the place in scored of every token of every response, in the order groups, responses, tokens;
    where ends are read a response is one member.
    response: (members,) the response that a member belongs to, 0..responses-1 in the same order.
    tokens_naive: tokens of every prompt with every response, as trainers without sharing compute them.
    """

    groups: tuple[TokenGroup, ...]
    trie: Trie
    ids: Tensor
    position: Tensor
    end: Tensor
    read: Tensor
    source: Tensor
    target: Tensor
    member: Tensor
    response: Tensor
    responses: int
    tokens_naive: int

    @property
    def tokens(self) -> int:
        """Distinct tokens, without fill."""
        return self.trie.tokens

    def sum(self, token_values: Tensor) -> Tensor:
        """(members,) -> (responses,): per-token values summed over each response.

        Added in fp64, which costs nothing here, and returned in the type that came: a sum of some hundred numbers
        one after the other loses two digits of fp32.
        """
        summed = torch.zeros(self.responses, dtype=torch.float64, device=token_values.device)
        return summed.index_add(0, self.response, token_values.double()).to(token_values.dtype)


def collate(
    groups: Sequence[TokenGroup], device: torch.device | str = "cpu", multiple: int = 1, reads: Reads = "tokens"
) -> Batch:
    """The pack of these groups on a device. Every prompt and every response has at least one token.

    multiple: rows, read rows and scored tokens are filled up to a multiple of it; fill sees no token of the pack, and
    no token sees fill. reads: where only predictions are read, the last token of a response is nobody's context, and
    so it is no row of the trie.
    """
    sequences = [np.concatenate([g.prompt, r]) for g in groups for r in g.responses]
    prompts = [len(g.prompt) for g in groups for _ in g.responses]
    if reads == "tokens":
        trie, counts = build([s[:-1] for s in sequences]), [len(s) - n for s, n in zip(sequences, prompts, strict=True)]
    else:
        trie, counts = build(sequences), [1] * len(sequences)
    source = np.concatenate([path[-n:] for path, n in zip(trie.paths, counts, strict=True)])
    target = np.concatenate([s[-n:] for s, n in zip(sequences, counts, strict=True)]).astype(np.int64)
    distinct, member = np.unique(np.stack([source, target]), axis=1, return_inverse=True)
    source, target = np.pad(distinct, ((0, 0), (0, -distinct.shape[1] % multiple)), "edge")
    fill = -trie.tokens % multiple
    rows, read = trie.tokens + fill, np.unique(source)
    unread = np.setdiff1d(np.arange(rows), read)
    read = np.union1d(read, unread[len(unread) - -len(read) % multiple :])

    def put(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.int64)).to(device, non_blocking=True)

    return Batch(
        groups=tuple(groups),
        trie=trie,
        ids=put(np.pad(trie.ids, (0, fill))),
        position=put(np.pad(trie.position, (0, fill))),
        end=put(np.pad(trie.end, (0, fill), constant_values=rows)),
        read=put(read),
        source=put(source),
        target=put(target),
        member=put(member.reshape(-1)),
        response=put(np.repeat(np.arange(len(sequences)), counts)),
        responses=len(sequences),
        tokens_naive=sum(map(len, sequences)),
    )

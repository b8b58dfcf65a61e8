"""Groups of one pack as tensors: the trie, the rows that a head reads, and the response that each answer belongs to.

Held by tests/pack/test_trie.py.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from preftune.pack.trie import Trie, build
from preftune.tokens.groups import TokenGroup

Reads = Literal["tokens", "ends"]  # rows before every token of a response, or the row of its last token
TENSORS = ("ids", "position", "end", "read", "source", "target", "member", "response")  # of a batch, in one buffer


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
    tokens: distinct ones, without fill.
    parts: the batches of which the rows are put together, each of which goes through the model by itself, where the
    model tells classes of length apart; empty where the rows are one forward pass.
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
    tokens: int
    parts: tuple[Batch, ...] = ()

    @property
    def passes(self) -> tuple[Batch, ...]:
        """What goes through the model at a time."""
        return self.parts or (self,)

    def sum(self, token_values: Tensor) -> Tensor:
        """(members,) -> (responses,): per-token values summed over each response.

        Added in fp64, which costs nothing here, and returned in the type that came: a sum of some hundred numbers
        one after the other loses two digits of fp32.
        """
        summed = torch.zeros(self.responses, dtype=torch.float64, device=token_values.device)
        return add_rows(summed, self.response, token_values.double()).to(token_values.dtype)


def collate(
    groups: Sequence[TokenGroup],
    device: torch.device | str = "cpu",
    multiple: int = 1,
    reads: Reads = "tokens",
    limits: Sequence[int] = (),
) -> Batch:
    """The pack of these groups on a device. Every prompt and every response has at least one token.

    multiple: rows, read rows and scored tokens of a pass are filled up to a multiple of it; fill sees no token of the
    pack, and no token sees fill. reads: where only predictions are read, the last token of a response is nobody's
    context, and so it is no row of the trie. limits: lengths beyond which the model treats a whole sequence otherwise;
    sequences on both sides of one are never in one forward pass, and each of those beyond one is there whole.
    """
    responses = [turns if reads == "tokens" else turns[-1:] for g in groups for turns in g.turns]
    sequences = [np.concatenate(turn) for turns in responses for turn in turns]
    prompts = [len(turn.prompt) for turns in responses for turn in turns]
    by_class: dict[int, list[int]] = {}
    for index, sequence in enumerate(sequences):
        by_class.setdefault(bisect_left(limits, len(sequence)), []).append(index)
    parts = [
        _one_pass([sequences[i] for i in which], [prompts[i] for i in which], device, multiple, reads, whole=number > 0)
        for number, which in sorted(by_class.items())
    ]
    batch = parts[0] if len(parts) == 1 else _joined(parts, [which for _, which in sorted(by_class.items())])
    response = batch.response
    if len(sequences) > len(responses):
        response_of_turn = np.repeat(np.arange(len(responses)), [*map(len, responses)])
        response = to_device([response_of_turn], device)[0][response]
    return replace(batch, groups=tuple(groups), response=response, responses=len(responses))


def _one_pass(
    sequences: Sequence[np.ndarray], prompts: Sequence[int], device: torch.device | str, multiple: int, reads: Reads, *,
    whole: bool,
) -> Batch:  # fmt: skip
    """The batch of prompts with a turn each, as if it were a response; without the groups. prompts: tokens of each."""
    if reads == "tokens":
        trie = build([s if whole else s[:-1] for s in sequences])
        counts = [len(s) - n for s, n in zip(sequences, prompts, strict=True)]
        read_rows = [path[n - 1 : n - 1 + c] for path, n, c in zip(trie.paths, prompts, counts, strict=True)]
    else:
        trie, counts = build(sequences), [1] * len(sequences)
        read_rows = [path[-1:] for path in trie.paths]
    source = np.concatenate(read_rows)
    target = np.concatenate([s[-n:] for s, n in zip(sequences, counts, strict=True)]).astype(np.int64)
    distinct, member = np.unique(np.stack([source, target]), axis=1, return_inverse=True)
    source, target = np.pad(distinct, ((0, 0), (0, -distinct.shape[1] % multiple)), "edge")
    fill = -trie.tokens % multiple
    rows, read = trie.tokens + fill, np.unique(source)
    unread = np.setdiff1d(np.arange(rows), read)
    read = np.union1d(read, unread[len(unread) - -len(read) % multiple :])

    end = np.pad(trie.end, (0, fill), constant_values=rows)
    by_row = [np.pad(trie.ids, (0, fill)), np.pad(trie.position, (0, fill)), end]
    response = np.repeat(np.arange(len(sequences)), counts)
    arrays = [*by_row, read, source, target, member.reshape(-1), response]
    tensors = dict(zip(TENSORS, to_device(arrays, device), strict=True))
    return Batch(groups=(), trie=trie, **tensors, responses=len(sequences), tokens=trie.tokens)


def to_device(arrays: Sequence[np.ndarray], device: torch.device | str) -> tuple[Tensor, ...]:
    """Arrays of whole numbers as int64 on a device, by one copy that the host does not wait for."""
    flat = torch.from_numpy(np.concatenate(arrays, dtype=np.int64))
    return send(flat, torch.device(device)).split([len(values) for values in arrays])


def send(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on a device, without a wait."""
    if device.type == "cuda":
        values = values.pin_memory()  # a copy of memory that is not pinned waits for all that the device has to do
    return values.to(device, non_blocking=True)


def add_rows(total: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """total, to whose given rows values are added in place; several values may go to one row.

    On CUDA they are sorted first and then added in one order: atomic additions would give other bits each time.
    """
    if total.is_cuda:
        return total.index_put_((rows,), values, accumulate=True)
    return total.index_add_(0, rows, values)


def _joined(parts: Sequence[Batch], which: Sequence[Sequence[int]]) -> Batch:
    """One batch whose rows are those of its parts, one part after the other. which: the sequences of each part."""
    first_row = np.cumsum([0, *(len(part.ids) for part in parts)]).tolist()
    first_scored = np.cumsum([0, *(len(part.source) for part in parts)]).tolist()
    members: dict[int, Tensor] = {}
    paths: dict[int, np.ndarray] = {}
    for part, row, scored, indices in zip(parts, first_row, first_scored, which, strict=False):
        counts = torch.bincount(part.response).tolist()
        members |= dict(zip(indices, (part.member + scored).split(counts), strict=True))
        paths |= dict(zip(indices, (path + row for path in part.trie.paths), strict=True))
    numbers = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "position", "target")}
    numbers |= {name: torch.cat([getattr(part, name) + row for part, row in zip(parts, first_row, strict=False)])
                for name in ("end", "read", "source")}  # fmt: skip
    ids, position, end = (numbers[name].cpu().numpy() for name in ("ids", "position", "end"))
    in_order = [members[i] for i in range(len(members))]
    response = torch.cat([torch.full_like(member, i) for i, member in enumerate(in_order)])
    return Batch(
        groups=(), trie=Trie(ids, position, end, tuple(paths[i] for i in range(len(paths)))), **numbers,
        member=torch.cat(in_order), response=response, responses=len(in_order), tokens=sum(p.tokens for p in parts),
        parts=tuple(parts),
    )  # fmt: skip

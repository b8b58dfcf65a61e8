"""The processes of one run, each with a copy of the model, and what they exchange.

Under torchrun every rank reads, plans and updates in the same way, and computes a part of the packs. Only sums and
maxima are exchanged, as tensors, and every rank gets the same bits. A rank that fails reports it and exits; the others
notice at the next exchange and exit quietly. Held by tests/laws/test_ranks.py and tests/laws/test_ranks_end.py.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from preftune.errors import BUG, PeerRankError, UserError
from preftune.lost_rank import cause_of, collective, exchanging

T = TypeVar("T")
BUCKET = 2**22  # numbers that are copied and exchanged in one call: 16 MiB, as large as pays
PATIENCE = timedelta(hours=2)  # how long a rank waits for another one; one that has exited is noticed at once
EXCHANGE = timedelta(minutes=20)  # how long for its tensors, when both have come there: NCCL notices no exit by itself
_group: Distributed | None = None  # the one that this process has joined; torch has one for each process, too
_joins = itertools.count()


@dataclass(frozen=True)
class Distributed:
    """rank: number of this process among `world_size`; store: where the first rank that fails reports it; control: the
    group in which small numbers are exchanged, all of them on the host, before any large tensors are."""

    rank: int = 0
    world_size: int = 1
    store: Store | None = None
    control: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and talks to the user."""
        return self.rank == 0

    @property
    def local(self) -> int:
        """Number among the processes of this machine, which is that of its GPU."""
        return int(os.environ.get("LOCAL_RANK", self.rank)) if self.world_size > 1 else 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place."""
        return self._all_reduce(values, dist.ReduceOp.SUM)

    def all_reduce_max(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise maximum over all ranks, in place."""
        return self._all_reduce(values, dist.ReduceOp.MAX)

    def max(self, number: int) -> int:
        """The largest of the ranks' numbers. It is also a barrier: no rank goes on before all have come here."""
        return int(self.all_reduce_max(torch.tensor(number, dtype=torch.int64)))

    def barrier(self) -> None:
        """Return when every rank has come this far."""
        self.max(0)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """What the ranks of a machine do one after the other, so that it takes the memory of one."""
        turns = self.max(int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size)))
        for _ in range(self.local):
            self.barrier()
        yield
        for _ in range(turns - self.local):
            self.barrier()

    def broadcast_int(self, number: int) -> int:
        """The number of rank 0; those of the others are ignored."""
        return int(self.sum(torch.tensor(number if self.first else 0, dtype=torch.int64)))

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """Where any rank raises UserError within, all raise it, after all have come to the end."""
        problem = None
        try:
            yield
        except UserError as error:
            problem = error
        if self.world_size == 1 or not (failed := self.max(0 if problem is None else self.rank + 1)):
            if problem is not None:
                raise problem
            return
        code = self.max(problem.code if problem is not None and self.rank == failed - 1 else 0)
        text = self._text(str(problem) if self.rank == failed - 1 else "")
        raise problem or UserError(f"rank {failed - 1}: {text}", code=code)

    def all_equal(self, numbers: Sequence[int]) -> list[bool]:
        """For each position, whether all ranks have the same number there. Every rank gives as many, below 2**63."""
        high, low = self.all_reduce_max(torch.tensor([numbers, [-number for number in numbers]]))
        return (high == -low).tolist()

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite the tensors of all ranks with those of rank 0."""
        for tensor in tensors if self.world_size > 1 else ():
            with collective():
                dist.broadcast(tensor, 0)

    def scatter_sum(self, parts: torch.Tensor) -> torch.Tensor:
        """Each rank gives (world_size, n), and gets (n,): the sum of the rows that have its number."""
        summed = parts.new_empty(parts.shape[1])
        with collective():
            dist.reduce_scatter(summed, [*parts])
        return summed

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """Each rank gives (n,), and gets (world_size, n): those of all ranks."""
        parts = part.new_empty(self.world_size, len(part))
        with collective():
            dist.all_gather([*parts], part)
        return parts

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum each gradient over all ranks, in fp32 or wider. One that no rank has stays None, as in one process."""
        if self.world_size == 1:
            return
        pieces: list[torch.Tensor] = []
        for parameter in self.with_gradient(p for p in parameters if p.requires_grad):
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = grad.contiguous()
            pieces += parameter.grad.view(-1).split(BUCKET)
        for bucket in buckets(pieces, len):
            flat = torch.cat([piece.to(torch.promote_types(piece.dtype, torch.float32)) for piece in bucket])
            for piece, summed in zip(bucket, self.sum(flat).split([len(piece) for piece in bucket]), strict=True):
                piece.copy_(summed)

    def with_gradient(self, parameters: Iterable[torch.nn.Parameter]) -> Iterator[torch.nn.Parameter]:
        """Those of the parameters that have a gradient on any rank, in the same order on each."""
        parameters = list(parameters)
        used = self.sum(torch.tensor([p.grad is not None for p in parameters], dtype=torch.int64))
        return itertools.compress(parameters, used.tolist())

    def _text(self, text: str) -> str:
        """The text of the one rank that gives any."""
        encoded = text.encode()
        padded = encoded.ljust(self.max(len(encoded)), b"\0")
        return bytes(self.sum(torch.tensor([*padded], dtype=torch.int64)).tolist()).decode()

    def _all_reduce(self, values: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
        if self.world_size > 1:
            with collective():
                dist.all_reduce(values, operation, self.control if values.device.type == "cpu" else None)
        return values


SINGLE_PROCESS = Distributed()


def current() -> Distributed:
    """The group that this process is in; SINGLE_PROCESS where it is in none."""
    return SINGLE_PROCESS if _group is None else _group


def buckets(pieces: Iterable[T], numbers: Callable[[T], int]) -> Iterator[list[T]]:
    """The pieces in lists of at most BUCKET numbers; a larger one has a list of its own."""
    bucket: list[T] = []
    size = 0
    for piece in pieces:
        if bucket and size + numbers(piece) > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(piece)
        size += numbers(piece)
    if bucket:
        yield bucket


def launched_by_torchrun() -> bool:
    """Whether torchrun has started this process as one of several."""
    names = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    return all(os.environ.get(name) for name in names) and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def process_group(location: str = "env://") -> Iterator[Distributed]:
    """Join the group that torchrun describes, or one that the caller of this library has initialized; SINGLE_PROCESS
    without either, and `current()` inside another block.

    The first rank that fails raises its error; the others raise PeerRankError with its code.
    """
    global _group
    of_caller = dist.is_initialized()
    if _group is not None or not (of_caller or location != "env://" or launched_by_torchrun()):
        yield current()
        return
    group = Distributed(dist.get_rank(), dist.get_world_size(), None, _control()) if of_caller else _join(location)
    _group = group
    try:
        with exchanging():  # a backward pass may be in one, too
            yield group
    except Exception as error:
        _report_failure(group, error.code if isinstance(error, UserError) else BUG)
        raise
    finally:
        _group = None
        dist.destroy_process_group(group.control if of_caller else None)


def _join(location: str) -> Distributed:
    # a second group in one process, or one that torchrun starts again, must not find the addresses of the first
    prefix = f"preftune/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_joins)}"
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, world_size = next(iter(rendezvous(location, timeout=PATIENCE)))
        store = PrefixStore(prefix, store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=EXCHANGE)
        return Distributed(rank, world_size, store, _control())
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot meet the other ranks: {cause_of(error)}.", hint="Start them with torchrun.") from error


def _control() -> dist.ProcessGroup:
    """A group of all ranks for numbers on the host, which NCCL does not take."""
    group = dist.new_group(timeout=PATIENCE, backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # every rank is in it
    return group


def _report_failure(group: Distributed, code: int) -> None:
    """Return on the first rank that fails; raise PeerRankError on the others."""
    report = first = f"{group.rank} {code}"
    if group.store is not None:
        with contextlib.suppress(RuntimeError):  # the store itself may be gone, with the rank that kept it
            first = group.store.compare_set("failed", "", report).decode()
    if first != report:
        rank, code = map(int, first.split())
        raise PeerRankError(f"rank {rank} failed.", code=code) from None

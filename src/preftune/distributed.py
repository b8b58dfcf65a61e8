"""The processes of one run, each with a copy of the model, and the little that they tell each other.

Under torchrun every rank reads, plans and updates alike, and takes its share of the packs. Only sums and maxima travel,
as tensors, and every rank gets the same bits of them. A rank that fails says so and leaves; the others find it gone
at the next thing they share, and end without a word of their own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from preftune.errors import BUG, STOPPED, PeerRankError, UserError

BUCKET = 2**24  # numbers of gradient that travel in one call, and of which a copy is held meanwhile
PATIENCE = timedelta(hours=2)  # how long a rank waits for another's share; one that is gone is noticed at once
_joined: list[Distributed] = []  # what this process belongs to; torch has one group a process too
_times = itertools.count()


@dataclass(frozen=True)
class Distributed:
    """index: place of this process among `count`; store: where the first that fails leaves word."""

    rank: int = 0
    world_size: int = 1
    store: Store | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, and talks to the user."""
        return self.rank == 0

    @property
    def local(self) -> int:
        """Place among the processes of this machine: the number of its GPU."""
        return int(os.environ.get("LOCAL_RANK", self.rank)) if self.world_size > 1 else 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def all_reduce_max(self, values: torch.Tensor) -> torch.Tensor:
        """The largest over all ranks, in place, number by number."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def max(self, number: int) -> int:
        """The largest of the ranks' numbers. No rank has it before all have come this far."""
        return int(self.all_reduce_max(torch.tensor(number, dtype=torch.int64)))

    def broadcast_int(self, number: int) -> int:
        """The number of rank 0; what the others give counts for nothing."""
        return int(self.sum(torch.tensor(number if self.first else 0, dtype=torch.int64)))

    def all_equal(self, numbers: Sequence[int]) -> list[bool]:
        """Whether all ranks have the same number, place by place; every rank gives as many, below 2**63."""
        high, low = self.all_reduce_max(torch.tensor([numbers, [-number for number in numbers]]))
        return (high == -low).tolist()

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite the tensors of all ranks by those of rank 0."""
        for tensor in tensors if self.world_size > 1 else ():
            with _collective():
                dist.broadcast(tensor, 0)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum each gradient over all ranks, in fp32 or wider. One that no rank has stays None, as with one process."""
        if self.world_size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        used = self.sum(torch.tensor([p.grad is not None for p in trained], dtype=torch.int64)).tolist()
        pieces: list[torch.Tensor] = []
        for parameter in itertools.compress(trained, used):
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = grad.contiguous()
            pieces += parameter.grad.view(-1).split(BUCKET)
        for bucket in _buckets(pieces):
            flat = torch.cat([piece.to(torch.promote_types(piece.dtype, torch.float32)) for piece in bucket])
            for piece, summed in zip(bucket, self.sum(flat).split([len(piece) for piece in bucket]), strict=True):
                piece.copy_(summed)

    def _reduced(self, values: torch.Tensor, how: dist.ReduceOp.RedOpType) -> torch.Tensor:
        if self.world_size > 1:
            with _collective():
                dist.all_reduce(values, how)
        return values


SINGLE_PROCESS = Distributed()


def current() -> Distributed:
    """What this process belongs to."""
    if _joined or not dist.is_initialized():
        return _joined[-1] if _joined else SINGLE_PROCESS
    return Distributed(dist.get_rank(), dist.get_world_size())  # a group that the caller of this library has made


def _buckets(pieces: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    held = 0
    for piece in pieces:
        if bucket and held + len(piece) > BUCKET:
            yield bucket
            bucket, held = [], 0
        bucket.append(piece)
        held += len(piece)
    if bucket:
        yield bucket


@contextlib.contextmanager
def _collective() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:  # a RuntimeError too
        raise
    except RuntimeError as error:  # what torch raises where another end of a connection is gone
        raise UserError(
            f"another rank ended without a word ({_cause(error)}).",
            hint="What was saved is whole: go on with --resume.",
            code=STOPPED,
        ) from error


def launched_by_torchrun() -> bool:
    """Whether torchrun has started this process as one of several."""
    told = [os.environ.get(name, "") for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")]
    return all(told) and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def process_group(location: str = "env://") -> Iterator[Distributed]:
    """This process among the others of its run, as torchrun tells; alone without it. Inside another, the same again.

    Of the ranks that fail, the first raises its error, and the others raise Elsewhere with its code.
    """
    if dist.is_initialized() or (location == "env://" and not launched_by_torchrun()):
        yield current()
        return
    ranks = _join(location)
    _joined.append(ranks)
    try:
        yield ranks
    except Exception as error:
        _report_failure(ranks, error.code if isinstance(error, UserError) else BUG)
        raise
    finally:
        _joined.remove(ranks)
        dist.destroy_process_group()


def _join(location: str) -> Distributed:
    # a second group in one process, or one that torchrun starts again, must not find the addresses of the first
    place = f"preftune/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_times)}"
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, world_size = next(iter(rendezvous(location, timeout=PATIENCE)))
        store = PrefixStore(place, store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot meet the other ranks: {_cause(error)}.", hint="Start them with torchrun.") from error
    return Distributed(rank, world_size, store)


def _cause(error: Exception) -> str:
    """The first sentence of what torch says, without the place in its source."""
    return str(error).split("] ", 1)[-1].split(". ")[0][:100]


def _report_failure(ranks: Distributed, code: int) -> None:
    """Return on the first rank that fails; raise Elsewhere on the others."""
    mine = f"{ranks.rank} {code}"
    first = mine
    if ranks.store is not None:
        with contextlib.suppress(RuntimeError):  # the store itself may be gone, with the rank that kept it
            first = ranks.store.compare_set("failed", "", mine).decode()
    if first != mine:
        rank, code = map(int, first.split())
        raise PeerRankError(f"rank {rank} failed.", code=code) from None

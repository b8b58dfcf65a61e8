"""Which ways to train a model fit on how many GPUs of a size, and what to change where one does not.

Held by tests/model/test_fits.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from preftune.model.budget import LARGEST, SMALLEST, USABLE, largest_pack
from preftune.model.memory import Setup, Shard, expected
from preftune.model.shapes import Shapes

RESERVED = 2**30  # bytes of a GPU that CUDA and the exchange between GPUs take
LONGEST_ROW = 2**17  # tokens up to which the longest row that fits is looked for
GOOD = 1024  # tokens of a pack from where on larger ones gain little
RANK = 16
SHARDS: tuple[Shard, ...] = get_args(Shard)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to train: what its memory depends on, and the words of a command that make a run take it."""

    setup: Setup
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """What is trained, in words."""
        setup = self.setup
        state = ", moments in 8 bits" if setup.state == "int8" else ""
        products = ", products in float32" if setup.compute == "float32" else ""
        if setup.adapter:
            return f"adapter of rank {setup.rank} on {setup.weights}{state}{products}"
        return f"every weight, {setup.weights}{state}{products}"


WAYS = (
    Way(Setup(compute="bfloat16"), ()),
    Way(Setup("bfloat16", "bfloat16", state="int8"), ("model.weights=bfloat16", "optim.state=int8")),
    Way(Setup("bfloat16", "bfloat16", rank=RANK), ("model.weights=bfloat16", f"adapter.rank={RANK}")),
    Way(Setup("nf4", "bfloat16", rank=RANK), ("model.weights=nf4", f"adapter.rank={RANK}")),
)


@dataclass(frozen=True, slots=True)
class Fit:
    """A way on some GPUs. setup: with what it is divided by and whether activations are recomputed; tokens: of a pack,
    0 where it does not fit; bytes: of one GPU, with that pack, or with the smallest; longest_row: tokens of the longest
    row that fits, with activations recomputed."""

    way: Way
    setup: Setup
    tokens: int
    bytes: int
    longest_row: int


@dataclass(frozen=True, slots=True)
class Demand:
    """What has to fit. memory: bytes of one GPU; longest: tokens of the longest row, or of a pack as the run demands
    it; most: tokens of a pack beyond which none is made; positions: of the model."""

    memory: float
    longest: int = SMALLEST
    most: int = LARGEST["cuda"]
    positions: int = LONGEST_ROW

    @property
    def usable(self) -> float:
        """Bytes that training may take."""
        return USABLE["cuda"] * self.memory - RESERVED


def fit(
    shapes: Shapes, way: Way, gpus: int, demand: Demand, *, shards: Sequence[Shard] = SHARDS, recompute: bool = True
) -> Fit:
    """The first that fits in packs of a good size, or else at all: divided as little as possible of `shards`, and only
    then by recomputing activations."""
    divided = [shard for shard in way.setup.divisible if shard in shards] or ["none"] if gpus > 1 else ["none"]
    again = sorted({way.setup.checkpointing, way.setup.checkpointing or recompute})
    setups = [replace(way.setup, shard=shard, gpus=gpus, checkpointing=c) for c in again for shard in divided]
    largest = max(demand.longest, demand.most)
    packs = [largest_pack(shapes, setup, demand.usable, largest, demand.longest) for setup in setups]
    wanted = (max(demand.longest, min(GOOD, demand.most)), demand.longest)
    fitting = next((i for least in wanted for i, tokens in enumerate(packs) if tokens >= least), None)
    least = [expected(shapes, setup, demand.longest).total for setup in setups]
    chosen = least.index(min(least)) if fitting is None else fitting
    setup, tokens = setups[chosen], packs[chosen] if fitting is not None else 0
    most = min(demand.positions, LONGEST_ROW)
    row = largest_pack(shapes, replace(setup, checkpointing=True), demand.usable, most)
    return Fit(way, setup, tokens, expected(shapes, setup, tokens or demand.longest).total, row)


def ways(own: Way) -> list[Way]:
    """The run's own way first, and the usual ones, with the models that the run has beside."""
    beside = {"copied": own.setup.copied, "frozen": own.setup.frozen, "value": own.setup.value}
    return [own, *(replace(way, setup=replace(way.setup, **beside)) for way in WAYS if way.name != own.name)]


def remedies(own: Way) -> list[Way]:
    """What a run can do whose own way does not fit, the least change first."""
    recomputed = Way(replace(own.setup, checkpointing=True), ("model.checkpointing=true",))
    _, *usual = ways(own)
    smaller = [way for way in usual if way.words and _kind(way) >= _kind(own)]  # who trains an adapter wants one
    return [*([] if own.setup.checkpointing else [recomputed]), *smaller]


def _kind(way: Way) -> tuple[bool, bool]:
    return way.setup.adapter, way.setup.quantized


def least_remedy(shapes: Shapes, own: Way, gpus: int, demand: Demand, shards: Sequence[Shard] = SHARDS) -> Fit | None:
    """The least change with which the run fits on so many GPUs; None where there is none."""
    fits = (fit(shapes, way, gpus, demand, shards=shards) for way in remedies(own))
    return next((chosen for chosen in fits if chosen.tokens), None)

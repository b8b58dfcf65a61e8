"""How much each token of a response counts. It applies alike to policy and reference, whatever the objective.

`logp` is then the weighted sum, and a mean over tokens divides by the sum of the weights. An aggregate is called once
a response, with the weights that its row gives (1 each where it gives none), float32 (tokens,), with the number of
tokens of the response that it is compared with, and with a seed. It returns the weights that count.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta, Struct

from preftune.errors import UserError
from preftune.table import about
from preftune.tokens.groups import TokenGroup


class AggregateTable(Struct, frozen=True, forbid_unknown_fields=True, tag_field="name"):
    """How the log-probabilities of a response's tokens become that of the response.

    compares: whether it needs another response to the same prompt, and without one changes nothing.
    """

    paper: ClassVar[str]
    compares: ClassVar[bool] = False


class Plain(AggregateTable, frozen=True, tag="sum"):
    """Every token counts 1, or what its row gives: the log-probability of the response itself."""

    paper = "2305.18290; weights that rows give: 2410.04350"

    def __call__(self, weights: np.ndarray, other: int, seed: int = 0) -> np.ndarray:
        return weights


class Mean(AggregateTable, frozen=True, tag="mean"):
    """All tokens count alike and 1 in total: the mean, for objectives that take the sum (with dpo it is ln_dpo)."""

    paper = "2411.15124"

    def __call__(self, weights: np.ndarray, other: int, seed: int = 0) -> np.ndarray:
        return weights / weights.sum()


class LD(AggregateTable, frozen=True, tag="ld"):
    """Length-desensitized: tokens beyond the other response's length count `alpha`."""

    paper = "2409.06411"
    compares = True

    alpha: Annotated[float, about("Weight of the tokens beyond.", also="ld_alpha", ge=0, lt=1)] = 0.5

    def __call__(self, weights: np.ndarray, other: int, seed: int = 0) -> np.ndarray:
        return weights * np.where(np.arange(len(weights)) < other, 1.0, self.alpha).astype(np.float32)


class SamPO(AggregateTable, frozen=True, tag="sampo"):
    """Sub-sample the longer response to the shorter one's length; policy and reference share one draw."""

    paper = "2406.10957"
    compares = True

    def __call__(self, weights: np.ndarray, other: int, seed: int = 0) -> np.ndarray:
        sampled = np.zeros(len(weights), np.float32)
        sampled[np.argsort(hashed_positions(seed, len(weights)), kind="stable")[:other]] = 1
        return weights * sampled


class Decay(AggregateTable, frozen=True, tag="decay"):
    """Later tokens count less: gamma^t."""

    paper = "2502.14340"

    gamma: Annotated[float, Meta(gt=0, lt=1, description="Factor from one token to the next.")] = 0.98

    def __call__(self, weights: np.ndarray, other: int, seed: int = 0) -> np.ndarray:
        return weights * (self.gamma ** np.arange(len(weights), dtype=np.float64)).astype(np.float32)


Aggregate = Plain | Mean | LD | SamPO | Decay


def apply_aggregate(groups: Sequence[TokenGroup], aggregate: Aggregate) -> list[TokenGroup]:
    """The groups with their column "weight"; a response is compared with the shortest other one of its group.

    Raises UserError where nothing of a response counts.
    """
    if isinstance(aggregate, Plain):
        return list(groups)
    weighted = []
    for group in groups:
        row_weights = group.column("weight") or tuple(np.ones(len(ids), np.float32) for ids in group.responses)
        weights = []
        for index, response in enumerate(group.responses):
            lengths = [len(ids) for other, ids in enumerate(group.responses) if other != index]
            seed = zlib.crc32(group.prompt.tobytes() + response.tobytes())
            weights.append(aggregate(row_weights[index], min(lengths, default=len(response)), seed))
        if not all(map(np.any, weights)):
            raise UserError("nothing of a response counts.", location=str(group.place),
                            hint="Its token weights and the aggregate together leave no token.")  # fmt: skip
        weighted.append(group.with_column("weight", tuple(weights)))
    return weighted


def hashed_positions(seed: int, count: int) -> np.ndarray:
    """uint64 (count,): hashes of seed and position (SplitMix64), the same on every machine and version."""
    mask = (1 << 64) - 1
    start = np.uint64((seed * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & mask)
    z = start + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))

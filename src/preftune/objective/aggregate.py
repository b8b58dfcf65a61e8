"""Other weights of a response's tokens than one each. Applied alike to policy and reference, whatever the objective.

`logp` is then the weighted sum. Each part is called once a response, with its own number of tokens and that of the
response it stands against, and gives float32 (tokens,).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta, Struct


class AggregateTable(Struct, frozen=True, forbid_unknown_fields=True, tag_field="name"):
    """How the log-probabilities of a response's tokens become that of the response."""

    paper: ClassVar[str]


class Plain(AggregateTable, frozen=True, tag="sum"):
    """Every token counts one: the log-probability of the response itself."""

    paper = "2305.18290"

    def __call__(self, tokens: int, other: int, seed: int = 0) -> np.ndarray:
        return np.ones(tokens, np.float32)


class LD(AggregateTable, frozen=True, tag="ld"):
    """Length-desensitised: tokens beyond the other response's length count `alpha`."""

    paper = "2409.06411"

    alpha: Annotated[float, Meta(ge=0, le=1, description="Weight of the tokens beyond; 1 changes nothing.")] = 0.5

    def __call__(self, tokens: int, other: int, seed: int = 0) -> np.ndarray:
        return np.where(np.arange(tokens) < other, 1.0, self.alpha).astype(np.float32)


class SamPO(AggregateTable, frozen=True, tag="sampo"):
    """Of the longer response as many tokens as the other has, drawn evenly; one draw for policy and reference."""

    paper = "2406.10957"

    def __call__(self, tokens: int, other: int, seed: int = 0) -> np.ndarray:
        kept = np.argsort(scrambled(seed, tokens), kind="stable")[:other]
        weights = np.zeros(tokens, np.float32)
        weights[kept] = 1
        return weights


class Decay(AggregateTable, frozen=True, tag="decay"):
    """Later tokens count less: gamma^t."""

    paper = "2502.14340"

    gamma: Annotated[float, Meta(gt=0, le=1, description="Factor from one token to the next; 1 changes nothing.")] = (
        0.98
    )

    def __call__(self, tokens: int, other: int, seed: int = 0) -> np.ndarray:
        return (self.gamma ** np.arange(tokens, dtype=np.float64)).astype(np.float32)


Aggregate = Plain | LD | SamPO | Decay


def scrambled(seed: int, count: int) -> np.ndarray:
    """uint64 (count,): hashes of seed and position (SplitMix64), the same on every machine and version."""
    mask = (1 << 64) - 1
    start = np.uint64((seed * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & mask)
    z = start + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))

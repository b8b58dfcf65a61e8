"""The account of a run's rows: how many were read, kept and skipped, and how long they are. data.json holds it.

Every field has a default, so that records of earlier versions open too.
"""

from __future__ import annotations

from msgspec import Struct

TOO_LONG = ("too_long", "prompt.too_long")  # reasons to skip a row that say nothing against its quality


class Counts(Struct, frozen=True):
    """Rows of one part: read, kept (and of which kinds), with a response cut, and skipped by reason."""

    read: int = 0
    kept: int = 0
    cut: int = 0
    kinds: dict[str, int] = {}
    skipped: dict[str, int] = {}
    notes: tuple[str, ...] = ()


class Bin(Struct, frozen=True):
    """The number of lengths of at most `to` tokens that are more than the bin before it holds."""

    to: float
    count: int


class Spread(Struct, frozen=True):
    """Distribution of lengths, in tokens; the bins double in width from 8 on."""

    median: float | None = None
    p90: float | None = None
    max: float | None = None
    bins: tuple[Bin, ...] = ()


class Account(Struct, frozen=True, kw_only=True):
    """What data.json holds.

    lengths: of `prompt`, `chosen` and `rejected`, as far as there are any; chosen_longer: share of pairs whose chosen
    response has more tokens, None without pairs; tokens_naive: each response with its own copy of the prompt;
    tokens_distinct: each prompt once a group; max_tokens: the longest prompt with one response that was allowed,
    whether the configuration named it or not; files: SHA-256 of each file of each part.
    """

    train: Counts | None = None
    evaluate: Counts | None = None
    lengths: dict[str, Spread | None] = {}
    chosen_longer: float | None = None
    tokens_naive: int | None = None
    tokens_distinct: int | None = None
    max_tokens: int | None = None
    files: dict[str, dict[str, str]] = {}

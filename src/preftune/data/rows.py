"""What a person wrote down about responses: pairs, ratings, rankings and demos, each with its place.

A row is text, not tokens. `prompt` and each response are either plain text or a conversation; which
of the two is kept, because text is continued as it stands and a conversation goes through the model's template.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

ROLES = ("system", "developer", "user", "assistant", "tool")


class Place(Struct, frozen=True):
    """Where a row stands: file name and line (or position in a JSON array or table), from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Message(Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]
Response = str | tuple[Message, ...]  # a conversation when the prompt is one; the last turn is the assistant's


class Pair(Struct, frozen=True, kw_only=True):
    """A prompt with the response that was preferred and the one that was not.

    preferred: share of judges for `chosen` (1.0 = certain; votes make it a soft label).
    scores: an explicit score of each, (chosen, rejected), where the source gives one.
    """

    prompt: Prompt
    chosen: Response
    rejected: Response
    place: Place
    id: str = ""
    preferred: float = 1.0
    scores: tuple[float, float] | None = None
    weight: float = 1.0


class Rating(Struct, frozen=True, kw_only=True):
    """A prompt with one response that was called good or bad."""

    prompt: Prompt
    response: Response
    good: bool
    place: Place
    id: str = ""
    score: float | None = None
    weight: float = 1.0


class Ranking(Struct, frozen=True, kw_only=True):
    """A prompt with K >= 2 responses; `ranks[k]` is the place of response k, 1 the best, equal for ties."""

    prompt: Prompt
    responses: tuple[Response, ...]
    ranks: tuple[int, ...]
    place: Place
    id: str = ""
    scores: tuple[float, ...] | None = None
    weight: float = 1.0


class Demo(Struct, frozen=True, kw_only=True):
    """A prompt with a response to imitate."""

    prompt: Prompt
    response: Response
    place: Place
    id: str = ""
    weight: float = 1.0


Row = Pair | Rating | Ranking | Demo
Kind = Literal["pair", "rating", "ranking", "demo"]
KINDS: dict[type, Kind] = {Pair: "pair", Rating: "rating", Ranking: "ranking", Demo: "demo"}


def responses(row: Row) -> tuple[Response, ...]:
    """All responses of a row in their fixed order: (chosen, rejected), (response,) or the ranking's."""
    if isinstance(row, Pair):
        return (row.chosen, row.rejected)
    return row.responses if isinstance(row, Ranking) else (row.response,)

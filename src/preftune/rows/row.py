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


class Span(Struct, frozen=True):
    """Characters [begin, end) of a response's text and what each of them counts."""

    begin: int
    end: int
    weight: float


Weights = tuple[float, ...] | tuple[Span, ...]  # one number a token of the response, or spans of its text
Prompt = str | tuple[Message, ...]
Response = str | tuple[Message, ...]  # a conversation when the prompt is one; the last turn is the assistant's


class Pair(Struct, frozen=True, kw_only=True):
    """A prompt with the response that was preferred and the one that was not.

    preferred: share of judges for `chosen` (1.0 = certain; votes make it a soft label).
    scores: an explicit score of each, (chosen, rejected), where the source gives one.
    token_weights: in all kinds of rows, what tokens count, response by response; None where each counts one.
    """

    prompt: Prompt
    chosen: Response
    rejected: Response
    place: Place
    id: str = ""
    preferred: float = 1.0
    scores: tuple[float, float] | None = None
    weight: float = 1.0
    token_weights: tuple[Weights | None, ...] | None = None


class Rating(Struct, frozen=True, kw_only=True):
    """A prompt with one response that was called good or bad, or (good is None) was only given a score."""

    prompt: Prompt
    response: Response
    good: bool | None
    place: Place
    id: str = ""
    score: float | None = None
    weight: float = 1.0
    token_weights: tuple[Weights | None, ...] | None = None


class Ranking(Struct, frozen=True, kw_only=True):
    """A prompt with K >= 2 responses; `ranks[k]` is the place of response k, 1 the best, equal for ties."""

    prompt: Prompt
    responses: tuple[Response, ...]
    ranks: tuple[int, ...]
    place: Place
    id: str = ""
    scores: tuple[float, ...] | None = None
    weight: float = 1.0
    token_weights: tuple[Weights | None, ...] | None = None


class Demo(Struct, frozen=True, kw_only=True):
    """A prompt with a response to imitate."""

    prompt: Prompt
    response: Response
    place: Place
    id: str = ""
    weight: float = 1.0
    token_weights: tuple[Weights | None, ...] | None = None


Row = Pair | Rating | Ranking | Demo
Kind = Literal["pair", "rating", "ranking", "demo"]
KINDS: dict[type, Kind] = {Pair: "pair", Rating: "rating", Ranking: "ranking", Demo: "demo"}


def responses(row: Row) -> tuple[Response, ...]:
    """All responses of a row in their fixed order: (chosen, rejected), (response,) or the ranking's."""
    if isinstance(row, Pair):
        return (row.chosen, row.rejected)
    return row.responses if isinstance(row, Ranking) else (row.response,)


def said(response: Response | Prompt) -> str:
    """The text of a response, or of the last turn of a prompt."""
    return response if isinstance(response, str) else response[-1].content if response else ""

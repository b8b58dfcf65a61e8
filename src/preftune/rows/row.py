"""What a person wrote down about responses: pairs, ratings, rankings, demos and tasks, each with its place.

A row is text, not tokens. Its prompt and each response are either plain text or a conversation. The difference is
kept, because a model continues text as it stands, while a conversation goes through the model's chat template.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

TOOLS, OPTIONS = "tools", "options"  # roles of what a template is told before all turns: what may be called, and how
TOLD = (TOOLS, OPTIONS)  # to render the row; both as JSON
ASKING = ("user", "tool")  # what the assistant answers
ROLES = (*TOLD, "system", "developer", "user", "assistant", "tool")


class Place(Struct, frozen=True):
    """Where a row stands: the file's name and the line (or the position in an array or table), counted from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Message(Struct, frozen=True):
    """One turn of a conversation.

    thought: what the assistant thought before it, if that stands beside its content; beside: JSON of what else stands
    there, such as calls of tools (rows/tools.py); learned: whether a turn of the assistant in a response is learned
    from, as are all that the row does not weigh 0.
    """

    role: str
    content: str
    thought: str = ""
    beside: str = ""
    learned: bool = True

    @property
    def says(self) -> str:
        """All that it says but its thought."""
        return "\n".join(filter(None, [self.content, self.beside]))


class Span(Struct, frozen=True):
    """Characters [begin, end) of a response's text and the weight of each of them."""

    begin: int
    end: int
    weight: float


TokenWeights = tuple[float, ...] | tuple[Span, ...]  # one number a token of the response, or spans of its text
Prompt = str | tuple[Message, ...]
Response = str | tuple[Message, ...]  # a conversation where the prompt is one; it begins and ends with the assistant


class _AnyRow(Struct, frozen=True, kw_only=True):
    """What all kinds of rows have.

    times: how often an epoch takes it; category: the part of the data that the row belongs to, where it says one;
    token_weights: one entry a response, None where each of its tokens counts 1; answer: what a verifier holds a drawn
    response against, where the row gives it; a value that is no text is its JSON; columns:
    JSON of those that functions of rewards read.
    """

    prompt: Prompt
    place: Place
    id: str = ""
    weight: float = 1.0
    times: int = 1
    category: str = ""
    token_weights: tuple[TokenWeights | None, ...] | None = None
    answer: str | None = None
    columns: str = ""


class Pair(_AnyRow, frozen=True, kw_only=True):
    """A prompt with the response that was preferred and the one that was not.

    preferred: share of judges for `chosen` (1.0 is certain; votes make it a soft label).
    scores: an explicit score of each, (chosen, rejected), where the source gives one.
    """

    chosen: Response
    rejected: Response
    preferred: float = 1.0
    scores: tuple[float, float] | None = None


class Rating(_AnyRow, frozen=True, kw_only=True):
    """A prompt with one response that was called good or bad, or (good is None) that only has a score."""

    response: Response
    good: bool | None
    score: float | None = None


class Ranking(_AnyRow, frozen=True, kw_only=True):
    """A prompt with two or more responses; `ranks[k]` is the rank of response k, 1 the best, equal for ties."""

    responses: tuple[Response, ...]
    ranks: tuple[int, ...]
    scores: tuple[float, ...] | None = None


class Demo(_AnyRow, frozen=True, kw_only=True):
    """A prompt with a response to imitate.

    rendered: the response is text from its first token on, as a model reads it, so control tokens in it count as such;
    the prompt is empty then.
    """

    response: Response
    rendered: bool = False


class Task(_AnyRow, frozen=True, kw_only=True):
    """A prompt alone, to which responses are drawn."""


Row = Pair | Rating | Ranking | Demo | Task
Kind = Literal["pair", "rating", "ranking", "demo", "task"]
KINDS: dict[type, Kind] = {Pair: "pair", Rating: "rating", Ranking: "ranking", Demo: "demo", Task: "task"}


def responses(row: Row) -> tuple[Response, ...]:
    """All responses of a row in their fixed order: (chosen, rejected), (response,), the ranking's, or none."""
    if isinstance(row, Task):
        return ()
    if isinstance(row, Pair):
        return (row.chosen, row.rejected)
    return row.responses if isinstance(row, Ranking) else (row.response,)


def shared_by(row: Row) -> Hashable:
    """What rows have in common that depend on each other: their prompt, or their responses where it is empty."""
    return row.prompt or responses(row)


def with_responses(row: Row, responses: Sequence[Response]) -> Row:
    """The row with other responses, in the order of `responses`."""
    if isinstance(row, Task):
        return row
    if isinstance(row, Pair):
        chosen, rejected = responses
        return replace(row, chosen=chosen, rejected=rejected)
    if isinstance(row, Ranking):
        return replace(row, responses=tuple(responses))
    return replace(row, response=responses[0])


def with_last_turn(row: Row) -> Row:
    """A demo of several turns as one of its last turn, with the others as prompt; any other row as it is."""
    if not isinstance(row, Demo) or isinstance(row.prompt, str) or isinstance(row.response, str):
        return row
    last = max(turns_of(row.response), default=0)
    return replace(row, prompt=(*row.prompt, *row.response[:last]), response=row.response[last : last + 1])


def turns_of(response: Response) -> tuple[int, ...]:
    """Where the turns of the assistant that are learned from stand in a response; 0 alone for text."""
    if isinstance(response, str):
        return (0,)
    return tuple(place for place, turn in enumerate(response) if turn.role == "assistant" and turn.learned)


def with_thoughts(response: Response) -> str:
    """As `text_of`, with the thoughts before it."""
    thoughts = [] if isinstance(response, str) else [turn.thought for turn in response if turn.thought]
    return "\n".join([*thoughts, text_of(response)])


def text_of(response: Response) -> str:
    """The text of a response: what is learned from of it."""
    if isinstance(response, str):
        return response
    return "\n\n".join(response[place].says for place in turns_of(response))


def last_text(prompt: Prompt) -> str:
    """The text of a prompt's last turn."""
    return prompt if isinstance(prompt, str) else prompt[-1].says if prompt else ""

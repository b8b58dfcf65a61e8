"""From rows to groups of token ids. Which tokens are a response is decided in `encode.py`, once, and never again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, islice, takewhile
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from preftune.errors import Problem, UserError
from preftune.rows.account import Tally, merge_malformed
from preftune.rows.parse import MalformedRow, SkippedRow
from preftune.rows.row import (
    KINDS,
    Demo,
    Pair,
    Place,
    Ranking,
    Rating,
    Row,
    Span,
    Task,
    TokenWeights,
    responses,
    text_of,
)
from preftune.tokens.encode import EncodedRow, Encoder, TokenOffsets
from preftune.tokens.groups import TokenGroup
from preftune.tokens.template import CONTROL, RenderedRow, Renderer
from preftune.tokens.turns import EncodedTurn, by_turn, encoded_turns, later_turns, within

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 256  # rows encoded at once
TooLong = Literal["skip", "cut", "split"]
WHAT_THEY_ARE = 'Say "tokens" if a template or you have written them as such, or "text" if they are letters.'


class Tokenized(Struct, frozen=True):
    """groups: one for each row kept, in order; skipped: one problem a row left out; cut: rows with a response cut."""

    groups: list[TokenGroup]
    skipped: list[Problem]
    cut: int
    notes: list[Problem]


def tokenize(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    too_long: TooLong = "skip",
    template_options: Mapping[str, Any] | None = None,
    control_tokens: Literal["text", "tokens"] | None = "text",
) -> Tokenized:
    """Groups of all rows.

    max_tokens: longest prompt with one response; too_long: `skip` leaves longer rows out, `cut` drops the end of
    their responses, `split` makes several groups of a text without a prompt; template_options: what the chat template
    is told beside the turns; control_tokens: what those in the text of rows are. Raises UserError that lists the rows
    on which the chat template fails, and, where nothing is said of control tokens, where most rows have some.
    """
    renderer = Renderer(tokenizer, template_options or {}, as_tokens=control_tokens == "tokens")
    encoder = Encoder(tokenizer, renderer.control, renderer.special)
    rows_in_ids = _RowsInIds(renderer, encoder, max_tokens, too_long)
    for start in range(0, len(rows), CHUNK):
        rows_in_ids.add(rows[start : start + CHUNK])
    if rows_in_ids.malformed:
        raise UserError(merge_malformed(rows_in_ids.malformed, lambda error: (error.hint, error.reason)))
    if control_tokens is None and rows_in_ids.with_control > len(rows) / 2:
        raise UserError(f"{rows_in_ids.with_control} of {len(rows)} rows have control tokens in their text.",
                        location="data.control_tokens", hint=WHAT_THEY_ARE)  # fmt: skip
    groups = rows_in_ids.groups
    notes = [*renderer.notes(), *encoder.check_known(groups), *rows_in_ids.tally.problems()]
    return Tokenized(groups, rows_in_ids.skipped, rows_in_ids.cut, notes)


class _RowsInIds:
    """Groups of rows, and what became of the others. cut: rows with a response cut; with_control: rows without turns
    in which control tokens stay text."""

    def __init__(self, renderer: Renderer, encoder: Encoder, max_tokens: int, too_long: TooLong) -> None:
        self._renderer, self._encoder = renderer, encoder
        self._max_tokens = max_tokens
        self._too_long: TooLong = too_long
        self.groups: list[TokenGroup] = []
        self.skipped: list[Problem] = []
        self.malformed: list[tuple[MalformedRow, Place]] = []
        self.tally, self.cut, self.with_control = Tally(), 0, 0

    def add(self, rows: Sequence[Row]) -> None:
        rendered: list[tuple[Row, list[tuple[Row, RenderedRow]]]] = []
        for row in rows:
            try:
                rendered.append((row, [(part, self._renderer.render(part)) for part in by_turn(row)]))
            except (MalformedRow, SkippedRow) as error:
                self._leave_out(row, error)
        encoded = iter(self._encoder.encode([part for _, parts in rendered for part in parts], self.tally))
        for row, parts in rendered:
            texts, ids = [text for _, text in parts], list(islice(encoded, len(parts)))
            try:
                groups = _groups(row, texts[0], ids, self._max_tokens, self._too_long, self._encoder)
            except (MalformedRow, SkippedRow) as error:
                self._leave_out(row, error)
            else:
                self.groups += groups
                self._remark(row, texts, shorter=_total(groups) < _total(ids))

    def _leave_out(self, row: Row, error: MalformedRow | SkippedRow) -> None:
        if isinstance(error, MalformedRow):
            self.malformed.append((error, row.place))
        else:
            self.skipped.append(Problem(error.message, str(row.place), reason=error.reason))

    def _remark(self, row: Row, texts: Sequence[RenderedRow], *, shorter: bool) -> None:
        """shorter: whether not all of the responses was kept."""
        if shorter and self._too_long == "cut":
            self.cut += 1
        elif shorter:
            self.tally.add("turns.too_long", "turns that lie beyond data.max_tokens are left out", row.place)
        remarks = dict.fromkeys(remark for text in texts for remark in text.remarks)
        self.with_control += isinstance(row.prompt, str) and any(reason == CONTROL for reason, _ in remarks)
        for reason, message in remarks:
            self.tally.add(reason, message, row.place)


def _total(rows: Iterable[TokenGroup | EncodedRow]) -> int:
    """Tokens of all responses."""
    return sum(len(ids) for row in rows for ids in row.responses)


def _groups(
    row: Row, text: RenderedRow, parts: Sequence[EncodedRow], max_tokens: int, too_long: TooLong, encoder: Encoder
) -> list[TokenGroup]:
    """The group of a row, or several that share out a long text without a prompt. parts: the ids of `by_turn`."""
    if too_long == "split" and isinstance(row, Demo) and not row.prompt:
        pieces = _pieces(parts[0].prompt, parts[0].responses[0], max_tokens)
        if len(pieces) > 1:
            named = (replace(row, id=f"{row.id or row.place}/{number}") for number, _ in enumerate(pieces, 1))
            return [
                _group(of_piece, [piece], max_tokens, too_long) for of_piece, piece in zip(named, pieces, strict=True)
            ]
    return [_with_weights(_group(row, parts, max_tokens, too_long), row, text, parts[0], encoder)]


def _pieces(start: Sequence[int], ids: Sequence[int], max_tokens: int) -> list[EncodedRow]:
    """A text of max_tokens a piece: each of its tokens is scored once, the first of a piece after the token before."""
    pieces = []
    while ids:
        room = max_tokens - len(start)
        pieces.append(EncodedRow([*start], [[*ids[:room]]]))
        start, ids = ids[room - 1 : room], ids[room:]
    return pieces


def _group(row: Row, parts: Sequence[EncodedRow], max_tokens: int, too_long: TooLong) -> TokenGroup:
    """The group, its responses cut where they are too long. parts: the ids of `by_turn`. Raises SkippedRow."""
    prompt, sides = parts[0].prompt, encoded_turns(row, parts)
    if isinstance(row, Demo) and too_long != "cut" and len(sides[0]) > 1:  # turns that fit are demos of their own
        sides = [list(takewhile(lambda turn: sum(map(len, turn)) <= max_tokens, sides[0])) or sides[0]]
    longest = max((len(before) + len(ids) for turns in sides for before, ids in turns), default=len(prompt))
    ranks = (1, 2) if isinstance(row, Pair) else row.ranks if isinstance(row, Ranking) else (1,) * len(sides)
    if not all(ids for turns in sides for _, ids in turns):
        raise SkippedRow("response.empty", "a response has no token.")
    _check_distinct(row, _spoken(sides), ranks, "")
    if longest > max_tokens:
        allowed = f"{max_tokens} are allowed"
        if isinstance(row, Task):
            raise SkippedRow("prompt.too_long", f"the prompt has {longest} tokens, {allowed}.")
        if too_long != "cut":
            raise SkippedRow("too_long", f"prompt and response have {longest} tokens, {allowed}.")
        if len(prompt) >= max_tokens:
            raise SkippedRow("prompt.too_long", f"the prompt alone has {len(prompt)} tokens, {allowed}.")
        sides = [within(turns, max_tokens) for turns in sides]
        _check_distinct(row, _spoken(sides), ranks, "_after_cut")
    score = row.score if isinstance(row, Rating) else None
    return TokenGroup(
        prompt=np.asarray(prompt, np.int32),
        responses=tuple(np.asarray(response, np.int32) for response in _spoken(sides)),
        kind=KINDS[type(row)], place=row.place, id=row.id, ranks=ranks,
        good=not isinstance(row, Rating) or row.good,
        preferred=row.preferred if isinstance(row, Pair) else 1.0,
        scores=row.scores if isinstance(row, Pair | Ranking) else None if score is None else (score,),
        weight=row.weight, times=row.times, category=row.category,
        later_turns=tuple(map(later_turns, sides)) if any(len(turns) > 1 for turns in sides) else (),
    )  # fmt: skip


def _spoken(sides: Sequence[Sequence[EncodedTurn]]) -> list[list[int]]:
    """The ids of each response, turn after turn."""
    return [[id_ for _, ids in turns for id_ in ids] for turns in sides]


def _check_distinct(row: Row, sides: Sequence[list[int]], ranks: Sequence[int], when: str) -> None:
    """Raise SkippedRow where two responses of different rank are the same tokens."""
    sides_and_ranks = list(zip(sides, ranks, strict=True))
    if any(ids == other and rank != another for (ids, rank), (other, another) in combinations(sides_and_ranks, 2)):
        raise SkippedRow(f"{KINDS[type(row)]}.identical{when}", "responses of different rank are the same tokens.")


def _with_weights(group: TokenGroup, row: Row, text: RenderedRow, ids: EncodedRow, encoder: Encoder) -> TokenGroup:
    """The group with the column "weight", where its row gives any. Raises MalformedRow, SkippedRow."""
    if row.token_weights is None:
        return group
    column = []
    for index, (weights, response) in enumerate(zip(row.token_weights, responses(row), strict=True)):
        tokens, offsets = len(ids.responses[index]), None  # before any cut
        if weights and isinstance(weights[0], Span):
            if text.text_starts[index] is None:
                message = "the chat template rewrites a response, so its spans are in doubt."
                raise SkippedRow("weights.text", message)
            offsets = encoder.offsets(text, index)
        numbers = np.ones(tokens, np.float32)
        if weights:
            numbers = weights_per_token(weights, text_of(response), tokens, offsets)
        column.append(numbers[: len(group.responses[index])])
        if not column[-1].any():
            raise SkippedRow("weights.none", "nothing of a response counts.")
    return group.with_column("weight", tuple(column))


def weights_per_token(weights: TokenWeights, text: str, tokens: int, offsets: TokenOffsets | None) -> np.ndarray:
    """(tokens,) float32.

    offsets: the response's tokens with their characters, counted from where `text` begins; spans need them. A token
    counts the mean of its characters that are not white space, so the span of a word is that of its token, whether the
    space before it belongs to the token or not. Raises MalformedRow where a list of numbers has another length.
    """
    numbers = [weight for weight in weights if not isinstance(weight, Span)]
    if numbers or offsets is None:
        if len(numbers) != tokens:
            counts = f"{tokens} tokens, its end token included, and {len(numbers)} token weights"
            hint = "Give one a token of this tokenizer, or spans of the text."
            raise MalformedRow(f"a response has {counts}.", hint, "weights.tokens")
        return np.asarray(numbers, np.float32)
    by_character = np.ones(len(text))
    for span in weights:
        if isinstance(span, Span):
            by_character[span.begin : span.end] = span.weight
    by_token = np.ones(tokens, np.float32)
    for index, (_, begin, end) in enumerate(offsets):
        characters = range(max(begin, 0), min(max(end, begin + 1), len(text)))
        visible = [position for position in characters if not text[position].isspace()] or list(characters)
        if visible:
            by_token[index] = by_character[visible].mean()
    return by_token

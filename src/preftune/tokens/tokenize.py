"""From rows to groups of token ids. Which tokens are a response is decided in `encode.py`, once, and never again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from msgspec import Struct

from preftune.errors import Problem, UserError
from preftune.rows.account import Tally, merge_malformed
from preftune.rows.parse import MalformedRow, SkippedRow
from preftune.rows.row import KINDS, Pair, Place, Ranking, Rating, Row, Span, Task, responses, text_of
from preftune.tokens.encode import EncodedRow, Encoder
from preftune.tokens.groups import TokenGroup
from preftune.tokens.template import RenderedRow, Renderer
from preftune.tokens.token_weights import weights_per_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 256  # rows encoded at once


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
    too_long: Literal["skip", "cut"] = "skip",
    template_options: Mapping[str, Any] | None = None,
) -> Tokenized:
    """Groups of all rows.

    max_tokens: longest prompt with one response; too_long: `skip` leaves longer rows out, `cut` drops the end of
    their responses; template_options: what the chat template is told beside the turns. Raises UserError that lists
    the rows on which the chat template fails.
    """
    renderer = Renderer(tokenizer, template_options or {})
    encoder = Encoder(tokenizer, renderer.control, renderer.special)
    groups: list[TokenGroup] = []
    skipped: list[Problem] = []
    malformed: list[tuple[MalformedRow, Place]] = []
    tally, cut = Tally(), 0
    for start in range(0, len(rows), CHUNK):
        rendered: list[tuple[Row, RenderedRow]] = []
        for row in rows[start : start + CHUNK]:
            try:
                rendered.append((row, renderer.render(row)))
            except MalformedRow as error:
                malformed.append((error, row.place))
            except SkippedRow as error:
                skipped.append(Problem(error.message, str(row.place), reason=error.reason))
        for (row, text), ids in zip(rendered, encoder.encode(rendered, tally), strict=True):
            try:
                group = _with_weights(_group(row, ids, max_tokens, too_long), row, text, ids, encoder)
            except MalformedRow as error:
                malformed.append((error, row.place))
            except SkippedRow as error:
                skipped.append(Problem(error.message, str(row.place), reason=error.reason))
            else:
                groups.append(group)
                cut += max(map(len, group.responses), default=0) < max(map(len, ids.responses), default=0)
                for reason, message in text.remarks:
                    tally.add(reason, message, row.place)
    if malformed:
        raise UserError(merge_malformed(malformed, lambda error: (error.hint, error.reason)))
    return Tokenized(groups, skipped, cut, [*renderer.notes(), *encoder.check_known(groups), *tally.problems()])


def _group(row: Row, ids: EncodedRow, max_tokens: int, too_long: Literal["skip", "cut"]) -> TokenGroup:
    """The group, its responses cut where they are too long. Raises SkippedRow."""
    longest = len(ids.prompt) + max(map(len, ids.responses), default=0)
    ranks = (1, 2) if isinstance(row, Pair) else row.ranks if isinstance(row, Ranking) else (1,) * len(ids.responses)
    if not all(ids.responses):
        raise SkippedRow("response.empty", "a response has no token.")
    _check_distinct(row, ids.responses, ranks, "")
    if longest > max_tokens:
        allowed = f"{max_tokens} are allowed"
        if isinstance(row, Task):
            raise SkippedRow("prompt.too_long", f"the prompt has {longest} tokens, {allowed}.")
        if too_long == "skip":
            raise SkippedRow("too_long", f"prompt and response have {longest} tokens, {allowed}.")
        if len(ids.prompt) >= max_tokens:
            raise SkippedRow("prompt.too_long", f"the prompt alone has {len(ids.prompt)} tokens, {allowed}.")
    within = [response[: max(0, max_tokens - len(ids.prompt))] for response in ids.responses]
    if longest > max_tokens:
        _check_distinct(row, within, ranks, "_after_cut")
    score = row.score if isinstance(row, Rating) else None
    return TokenGroup(
        prompt=np.asarray(ids.prompt, np.int32),
        responses=tuple(np.asarray(response, np.int32) for response in within),
        kind=KINDS[type(row)], place=row.place, id=row.id, ranks=ranks,
        good=not isinstance(row, Rating) or row.good,
        preferred=row.preferred if isinstance(row, Pair) else 1.0,
        scores=row.scores if isinstance(row, Pair | Ranking) else None if score is None else (score,),
        weight=row.weight, category=row.category,
    )  # fmt: skip


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

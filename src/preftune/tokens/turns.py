"""Responses with several turns of the assistant: each turn is encoded after what the template gives a model before it.

A template may write a turn that is to be said otherwise than it writes it later on (many leave out thoughts of earlier
turns), so the whole conversation as text is not what a model sees when it says its turns. Held by
tests/tokens/test_turns.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise, takewhile

import numpy as np

from preftune.rows.row import Demo, Row, responses, turns_of, with_responses
from preftune.tokens.encode import EncodedRow
from preftune.tokens.groups import LaterTurn

EncodedTurn = tuple[list[int], list[int]]  # ids of all that stands before it, and its own


def by_turn(row: Row) -> list[Row]:
    """The row with the first turn of each response, and then a demo for every further turn of the assistant, in the
    order of the responses; the prompt of each is the conversation before it."""
    sides, prompt = responses(row), row.prompt
    if isinstance(prompt, str) or all(len(side) == 1 for side in sides):
        return [row]
    later: list[Row] = [
        Demo(prompt=(*prompt, *side[:place]), response=side[place : place + 1], place=row.place)
        for side in sides
        if not isinstance(side, str)
        for place in turns_of(side)[1:]
    ]
    return [with_responses(row, [side[:1] for side in sides]), *later]


def encoded_turns(row: Row, parts: Sequence[EncodedRow]) -> list[list[EncodedTurn]]:
    """The turns of each response. parts: the ids of `by_turn`."""
    first, *others = parts
    later, sides = iter(others), []
    for ids, response in zip(first.responses, responses(row), strict=True):
        turns = [(first.prompt, ids)]
        turns += [(part.prompt, part.responses[0]) for part in islice(later, len(turns_of(response)) - 1)]
        sides.append(turns)
    return sides


def later_turns(turns: Sequence[EncodedTurn]) -> tuple[LaterTurn, ...]:
    """The turns after the first, as a group holds them."""
    first, later = 0, []
    for (before, said), (prompt, _) in pairwise(turns):
        first += len(said)
        equal = (old == new for old, new in zip([*before, *said], prompt, strict=False))
        shared = sum(takewhile(bool, equal))
        later.append(LaterTurn(first, shared, np.asarray(prompt[shared:], np.int32)))
    return tuple(later)


def within(turns: Sequence[EncodedTurn], max_tokens: int) -> list[EncodedTurn]:
    """The turns up to the one that has more than so many tokens with what stands before it, which is cut there; no turn
    comes after it."""
    fitting: list[EncodedTurn] = []
    for before, ids in turns:
        if len(before) >= max_tokens:
            break
        fitting.append((before, ids[: max_tokens - len(before)]))
        if len(before) + len(ids) > max_tokens:
            break
    return fitting

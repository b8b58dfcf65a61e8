"""The weights that a row gives to the tokens of its responses, read from its keys.

They have two forms. Spans of the response's text, `[[begin, end, weight], ...]` in characters, suit any tokenizer;
what no span covers counts 1, and so does the end token. A plain list has one number a token of the response, end token
included, and suits one tokenizer only. Nothing is guessed: numbers that do not fit are an error.
"""

from __future__ import annotations

from itertools import pairwise

from preftune.rows.parse import MalformedRow, describe, parse_count, parse_list
from preftune.rows.row import Span, TokenWeights


def parse_token_weights(value: object, field: str, text: str) -> TokenWeights | None:
    """The weights that a field gives to a response's text; None for null. Raises MalformedRow."""
    if value is None:
        return None
    entries = parse_list(value, field)
    if not any(isinstance(entry, list) for entry in entries):
        numbers = tuple(parse_count(entry, f"{field}[{index}]") for index, entry in enumerate(entries))
        if not any(numbers):
            raise MalformedRow(f'"{field}" is all 0, so nothing of the response counts.', "Leave such rows out.")
        return numbers
    spans = [_span(entry, f"{field}[{index}]", text) for index, entry in enumerate(entries)]
    spans.sort(key=lambda span: span.begin)
    for span, following in pairwise(spans):
        if following.begin < span.end:
            raise MalformedRow(f'"{field}": the spans from {span.begin} and from {following.begin} overlap.')
    return tuple(spans)


def _span(value: object, field: str, text: str) -> Span:
    if not isinstance(value, list) or len(value) != 3:
        hint = "Either all entries are spans, or all are numbers, one a token."
        raise MalformedRow(f"{field} is {describe(value)}, needs [begin, end, weight].", hint)
    begin, end, weight = (parse_count(number, f"{field}[{index}]") for index, number in enumerate(value))
    if not (begin.is_integer() and end.is_integer() and begin < end <= len(text)):
        message = f"{field} is no span of the response, which has {len(text)} characters: {begin:g} to {end:g}."
        raise MalformedRow(message, "Count characters from 0; the end is one past the last.")
    return Span(int(begin), int(end), weight)

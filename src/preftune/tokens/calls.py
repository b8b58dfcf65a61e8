"""Proof that a chat template renders what rows say of tools, since most templates have no place for some of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from preftune.rows.parse import MalformedRow, excerpt
from preftune.rows.row import TOOLS, Message
from preftune.rows.tools import OF_ANSWER
from preftune.tokens.thoughts import letters


def prove(turn: Message, rendered: str) -> None:
    """Raise MalformedRow unless all that a turn says of tools stands in the text: names of tools, names and values of a
    call's arguments, and all of any other key but who answers; as it is, or as JSON writes it."""
    text = letters(rendered)
    for key, wanted in _words_to_find(turn).items():
        for word in wanted:
            forms = (word, in_json(word), in_json(in_json(word)), json.dumps(word)[1:-1])
            if not any(letters(form) in text for form in forms):
                hint = "Give another with data.template, or leave the key out."
                raise MalformedRow(f"the chat template has no place for {excerpt(word)} of {key}.", hint, "template")


def in_json(text: str) -> str:
    """The text as it stands between quotes in JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _words_to_find(turn: Message) -> dict[str, list[str]]:
    """The texts to find, by the key that has them."""
    if turn.role == TOOLS:
        return {TOOLS: [tool["function"]["name"] for tool in json.loads(turn.content)]}
    beside = json.loads(turn.beside) if turn.beside else {}
    wanted = {key: [*_leaves(value)] for key, value in beside.items() if key not in (*OF_ANSWER, "tool_calls")}
    functions = [call["function"] for call in beside.get("tool_calls", [])]
    called = [leaf for function in functions for leaf in (function["name"], *_leaves(function["arguments"]))]
    return wanted | ({"tool_calls": called} if called else {})


def _leaves(value: object) -> Iterator[str]:
    """Names and values inside of a value, as JSON has them, without quotes."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from _leaves(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value if isinstance(value, str) else json.dumps(value)

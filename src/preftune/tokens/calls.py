"""Proof that a chat template renders what rows say of tools, since most templates have no place for some of it.

A word of a call may stand in a prompt for another reason, so no rendered text can be searched for it. In place of every
name, key and value stands a mark that is nowhere else, and the conversation is rendered once more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from preftune.rows.parse import MalformedRow, excerpt
from preftune.rows.row import TOOLS, Message
from preftune.rows.tools import OF_ANSWER, as_json

NUMBER = 917_000_000  # marks of values that are no text are whole numbers from here on


class Marks:
    """Marks in place of what turns say of tools: names of tools and of their parameters, names and values of a call's
    arguments, all of other keys but who answers, and the content beside them."""

    def __init__(self, turns: Sequence[Message]) -> None:
        self._meant: dict[str, str] = {}
        self._turns = [self._marked(turn) for turn in turns]

    def prove(self, render: Callable[[Sequence[Message]], str]) -> None:
        """Raise MalformedRow unless every mark stands in what the marked turns render to."""
        rendered = render(self._turns) if self._meant else ""
        if lost := next((meant for mark, meant in self._meant.items() if mark not in rendered), ""):
            hint = 'Give another with data.template, or leave the key out: data.columns={"tools": ""}.'
            raise MalformedRow(f"the chat template has no place for {lost}.", hint, "template")

    def _marked(self, turn: Message) -> Message:
        if turn.role == TOOLS:
            listed = json.loads(turn.content)
            for tool in listed:
                function = tool["function"]
                function["name"] = self._mark(function["name"], "tools")
                parameters = function.get("parameters")
                if isinstance(parameters, dict) and isinstance(parameters.get("properties"), dict):
                    named = parameters["properties"].items()
                    parameters["properties"] = {self._mark(name, "tools"): facts for name, facts in named}
            return replace(turn, content=json.dumps(listed))
        if not turn.beside:
            return turn
        beside = json.loads(turn.beside)
        for call in beside.get("tool_calls", []):
            function = call["function"]
            call["function"] = {
                "name": self._mark(function["name"], "tool_calls"),
                "arguments": self._walk(function["arguments"], "tool_calls"),
            }
        others = [key for key in beside if key not in (*OF_ANSWER, "tool_calls")]
        beside |= {key: self._walk(beside[key], key) for key in others}
        content = str(self._mark(turn.content, "content beside it")) if turn.content else ""
        return replace(turn, content=content, beside=as_json(beside))

    def _walk(self, value: object, key: str) -> object:
        if isinstance(value, dict):
            return {str(self._mark(name, key)): self._walk(entry, key) for name, entry in value.items()}
        return [self._walk(entry, key) for entry in value] if isinstance(value, list) else self._mark(value, key)

    def _mark(self, value: object, key: str) -> str | int:
        number = len(self._meant)
        mark = f"zq{number}qz" if isinstance(value, str) else NUMBER + number
        self._meant[str(mark)] = f"{excerpt(value)} of {key}"
        return mark

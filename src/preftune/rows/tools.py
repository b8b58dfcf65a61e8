"""Tools: what a model may call, what it calls, and who answers, as chat templates get them.

A list of tools stands first in a prompt, as a turn of the role `tools`. What a message has beside its content, such as
`tool_calls`, stays beside it as JSON. Both are given to the template, and tokens/chat.py proves that they stand in what
it renders. Held by tests/rows/test_tools.py.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from preftune.rows.json_text import parse_line, what_is_wrong
from preftune.rows.keys import TOOL, is_nothing, words_of
from preftune.rows.parse import MalformedRow, describe
from preftune.rows.row import OPTIONS, TOLD, TOOLS, Message, Prompt

LISTED = ("tools", "functions")  # keys of a row that list tools
TAKEN = ("tools", "conversation", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message")
OF_TEMPLATE = "chat_template_kwargs"  # key of a row that tells a template how to render it
CALLER = frozenset({"function_call", "tool_call"})  # roles of an assistant's turn that is nothing but calls, as JSON
CALLS = ("tool_calls", "function_call")  # keys of a message that hold calls, the second in OpenAI's earlier form
ARGUMENTS = ("arguments", "parameters", "args", "input")  # what a call's arguments are called
OF_CALL = ("id", "type", "index", "name", "function")  # its other keys
OF_ANSWER = ("name", "tool_call_id")  # what says, beside a tool's answer, whose it is


def listed(value: object, field: str) -> Message:
    """The turn that lists tools, given as objects or as JSON text of them. Raises MalformedRow."""
    value = _loaded(_without_null(value), field)
    whole = []
    for index, entry in enumerate(value if isinstance(value, list) else [value]):
        tool = _loaded(entry, f"{field}[{index}]")
        function = tool.get("function", tool) if isinstance(tool, dict) else tool
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            message = f"{field}[{index}] is {describe(tool)}, needs a function with a name."
            raise MalformedRow(message, "Tools are objects as OpenAI's API has them.")
        whole.append(tool if function is not tool else {"type": "function", "function": tool})
    return Message(TOOLS, _dumped(whole))


def options_of(value: object, field: str) -> Message:
    """The turn that holds what a template is told of one row, such as `enable_thinking`. Raises MalformedRow."""
    options = _loaded(_without_null(value), field)
    if not isinstance(options, dict):
        raise MalformedRow(f"{field} is {describe(value)}, needs an object.")
    if taken := [name for name in TAKEN if name in options]:
        raise MalformedRow(f"{field}.{taken[0]} is no option of a template.", "Leave it out.")
    return Message(OPTIONS, _dumped(options))


def beside_content(message: Mapping[str, object], role: str, field: str) -> dict[str, object]:
    """What a message says of tools beside its content, by its keys. Raises MalformedRow."""
    beside: dict[str, object] = {}
    for key, value in message.items():
        words = words_of(key)
        if is_nothing(value) or isinstance(value, bool) or "num" in words:
            continue
        if role == "tool" and key in OF_ANSWER:
            beside[key] = value
        elif key in CALLS:
            if role != "assistant":
                raise MalformedRow(f"{field} has {key}, but is the {role}'s.", "Only the assistant calls tools.")
            made = calls(value, f"{field}.{key}")
            if beside.get("tool_calls", made) != made:
                raise MalformedRow(f"{field} has {' and '.join(CALLS)}, which differ.", "Keep one of them.")
            beside["tool_calls"] = made
        elif words & TOOL:
            beside[key] = _without_null(value)
    return beside


def calls(value: object, field: str) -> list[dict[str, object]]:
    """Calls in the form of OpenAI's API, each with its arguments as an object. Raises MalformedRow."""
    value = _loaded(_without_null(value), field)
    return [_call(call, f"{field}[{n}]") for n, call in enumerate(value if isinstance(value, list) else [value])]


def _call(value: object, field: str) -> dict[str, object]:
    call = _loaded(value, field)
    function = _loaded(call.get("function", call), f"{field}.function") if isinstance(call, dict) else call
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise MalformedRow(f"{field} is {describe(call)}, needs a function with a name.")
    named = [key for key in ARGUMENTS if key in function]
    unread = [key for key in {**call, **function} if key not in (*OF_CALL, *ARGUMENTS)]
    if unread or len(named) > 1:
        message = f"{field} has {', '.join(unread or named)}, of which a call has {'none' if unread else 'one'}."
        raise MalformedRow(message, 'A call is {"name": ..., "arguments": {...}}.')
    arguments = _loaded(function[named[0]], f"{field}.{named[0]}") if named else {}
    if arguments != "" and not isinstance(arguments, dict):
        raise MalformedRow(f"{field}.{named[0]} is {describe(arguments)}, needs an object.")
    id_ = {} if is_nothing(call.get("id")) else {"id": call["id"]}
    return {**id_, "type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}


def a_call(prompt: Prompt) -> Message | None:
    """A call of the first tool that a prompt lists, without arguments; None where it lists none."""
    lists = [] if isinstance(prompt, str) else [turn for turn in prompt[: len(TOLD)] if turn.role == TOOLS]
    if not lists:
        return None
    name = json.loads(lists[0].content)[0]["function"]["name"]
    return Message("assistant", "", beside=as_json({"tool_calls": calls({"name": name}, TOOLS)}))


def as_json(beside: Mapping[str, object]) -> str:
    return _dumped(beside) if beside else ""


def for_template(turn: Message, arguments_as_text: bool) -> dict[str, Any]:
    """What a template gets of a turn beside role and content."""
    beside = json.loads(turn.beside) if turn.beside else {}
    for call in beside.get("tool_calls", []) if arguments_as_text else []:
        call["function"]["arguments"] = _dumped(call["function"]["arguments"])
    return beside


def plain_prompt(prompt: Prompt) -> str | list[dict[str, Any]]:
    """The prompt as a user's function gets it: text, or messages with `role`, `content` and what stands beside them. A
    list of tools is a message of the role `tools` and a template's options one of the role `options`, both with JSON as
    content; rows may be written so too."""
    if isinstance(prompt, str):
        return prompt
    messages = []
    for turn in prompt:
        thought = {"reasoning_content": turn.thought} if turn.thought else {}
        messages.append({"role": turn.role, "content": turn.content, **thought, **for_template(turn, False)})
    return messages


def changed(text: str, change: Callable[[str], str]) -> str:
    """JSON text, or none, with every text inside of it changed."""

    def walk(value: object) -> object:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list):
            return [*map(walk, value)]
        return {change(key): walk(entry) for key, entry in value.items()} if isinstance(value, dict) else value

    return _dumped(walk(json.loads(text))) if text else ""


def _loaded(value: object, field: str) -> object:
    """What JSON or Python text holds; any other value as it is. Raises MalformedRow where text that begins as JSON is
    neither."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    loaded, wrong = parse_line(value.encode("utf-8", "surrogatepass"))
    if not wrong:
        return loaded
    if wrong.startswith("not JSON"):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            literal = ast.literal_eval(value.strip())
            written = json.dumps(literal, allow_nan=False)
            if json.loads(written) == literal and not (wrong := what_is_wrong(literal, written)):
                return literal  # which JSON would not change
    raise MalformedRow(f"{field}: {wrong}")


def _without_null(value: object) -> object:
    """The value without what is null, which a table writes where a row has no such key; text has what it says."""
    if isinstance(value, Mapping):
        return {key: _without_null(entry) for key, entry in value.items() if entry is not None}
    return [*map(_without_null, value)] if isinstance(value, list) else value


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=_refuse)


def _refuse(value: object) -> NoReturn:
    raise MalformedRow(f"{describe(value)} stands where tools need JSON.")

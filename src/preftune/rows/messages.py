"""Conversations: from JSON to turns, and prompt and responses brought into one form.

Prompt and responses end up as text alone, or as conversations in which each response is one assistant turn.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

from msgspec.structs import replace

from preftune.errors import nearest
from preftune.rows import tools, transcripts
from preftune.rows.columns import plain
from preftune.rows.json_text import parse_line, what_is_wrong
from preftune.rows.keys import THOUGHT, is_nothing, words_of
from preftune.rows.parse import MalformedRow, SkippedRow, describe, first_of, hole, parse_text
from preftune.rows.row import ASKING, ROLES, TOLD, Demo, Message, Prompt, Response, Row, Task, turns_of

OTHER_ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "model"), "assistant"),
    **dict.fromkeys(("observation", "environment", "ipython", "function", "tool_response"), "tool"),
}
LEARNED = ("weight", "train", "training", "loss")  # whether a turn is learned from: in OpenAI's API, axolotl, ms-swift
Turns = tuple[Message, ...]


class Unread(dict[str, object]):
    """The keys inside of a row that nothing read, as `chosen[].name`, each with a value that says something, if any."""

    def add(self, value: Mapping[str, object], field: str, read: Sequence[str]) -> None:
        """Take up the keys of an object at `field` that are not in `read`."""
        for key, entry in value.items():
            if key not in read and entry is not None:
                path = f"{re.sub(r'[0-9]+]', ']', field)}.{key}"
                if path not in self or is_nothing(self[path]):
                    self[path] = entry


def parse_turns(value: object, field: str, unread: Unread) -> Prompt:
    """Text as it stands, or a conversation from a list of messages, one message, an object that holds them, or JSON or
    Python text of any of these.

    Raises MalformedRow, SkippedRow where something is null or an empty list.
    """
    value = _messages_in(value)
    if isinstance(value, str):
        return value
    if value is None:
        raise hole(field)
    if isinstance(value, dict):
        if "messages" in value:
            unread.add(value, field, ("messages",))
            return parse_turns(value["messages"], f"{field}.messages", unread)
        return (_message(value, field, unread),)
    if not isinstance(value, list):
        needed = "needs text or a list of messages."
        raise MalformedRow(f'"{field}" is {describe(value)}, {needed}', "Quote it, or drop the row.")
    if not value:
        raise hole(field, "an empty list")
    return tuple(_message(message, f"{field}[{position}]", unread) for position, message in enumerate(value))


def is_texts(value: object) -> bool:
    """Whether the value is a list of texts that are no messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(_messages_in(entry), str) for entry in value)


def _messages_in(value: object) -> object:
    """What JSON or Python text of messages holds; any other value as it is. Raises MalformedRow where such text says
    what strict JSON cannot."""
    if isinstance(value, list):
        return [_messages_in(entry) for entry in value]
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{") or not re.search("role|from", value):
        return value
    messages, wrong = parse_line(value.encode())
    if wrong:
        messages = _json_or_python(value.strip())
    listed = messages if isinstance(messages, list) else [messages]
    keys = [{*message} if isinstance(message, dict) else set() for message in listed]
    if not keys or not all(some & {"role", "from"} and some & {"content", "value", "tool_calls"} for some in keys):
        return value
    if wrong.startswith("not JSON"):  # so it is Python's
        messages = plain(messages)
        wrong = what_is_wrong(messages, value)
    if wrong:
        raise MalformedRow(f"the text of messages cannot be read: {wrong}")
    return messages


def _json_or_python(text: str) -> object:
    """What the text holds if it is read less strictly; None where it is neither."""
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return parse(text)
    return None


def _message(value: object, field: str, unread: Unread) -> Message:
    if not isinstance(value, dict):
        raise MalformedRow(f"{field} is {describe(value)}, needs a message with a role and its content.")
    role, beside = first_of(value, ("role", "from"), field), {}
    if isinstance(role, str) and role in tools.CALLER:
        key = "content" if "content" in value else "value"
        beside = {"tool_calls": tools.calls(value.get(key), f"{field}.{key}")}
        role, value = "assistant", {**value, key: ""}
    if not isinstance(role, str) or OTHER_ROLES.get(role, role) not in ROLES:
        hint = nearest(str(role), [*ROLES, *OTHER_ROLES]) or f"Known roles: {', '.join(ROLES)}."
        raise MalformedRow(f"{field}.role is {describe(role)}, which is no known role.", hint)
    if role in TOLD:
        unread.add(value, field, ("role", "content"))
        written_out = tools.listed if role == tools.TOOLS else tools.options_of  # as `plain_prompt` writes it
        return written_out(value.get("content"), f"{field}.content")
    role = OTHER_ROLES.get(role, role)
    thoughts = {key: entry for key, entry in value.items() if role == "assistant" and _is_thought(key, entry)}
    weights = _weights(value, role, field)
    beside |= tools.beside_content(value, role, field)
    said = "function_call" if "tool_calls" in beside else "tool_calls"  # which has become tool_calls
    unread.add(value, field, ("role", "from", "content", "value", *weights, *thoughts, *beside, said))
    is_call = bool(beside) and role == "assistant" and not any(value.get(key) for key in ("content", "value"))
    content = "" if is_call else first_of(value, ("content", "value"), field)
    if isinstance(content, list):
        parts = [_part(part, f"{field}.content[{position}]", unread) for position, part in enumerate(content)]
        thoughts |= {str(position): text for position, (text, thought) in enumerate(parts) if thought}
        content = "".join(text for text, thought in parts if not thought)
    if thoughts and role != "assistant":
        raise MalformedRow(f"{field} has a thought, but is the {role}'s.", "Write it into the text of the turn.")
    if len({*thoughts.values()}) > 1:
        raise MalformedRow(f"{field} has several thoughts: {', '.join(thoughts)}.", "Keep one of them.")
    text, thought = parse_text(content, f"{field}.content"), str(next(iter(thoughts.values()), ""))
    return Message(role, text, thought, tools.as_json(beside), all(weights.values()))


def _weights(value: Mapping[str, object], role: str, field: str) -> Mapping[str, object]:
    """What a message says of whether it is learned from. Raises MalformedRow for what cannot be meant here."""
    weights = {key: value[key] for key in LEARNED if value.get(key) is not None}
    for key, weight in weights.items():
        if role != "assistant" and weight is True:
            message = f"{field}.{key} is true, and turns of the {role} are not learned from."
            raise MalformedRow(message, "Leave it out.")
        if role == "assistant" and weight not in (0, 1):
            hint = "Other weights of text are token_weights of the row."
            raise MalformedRow(f"{field}.{key} is {describe(weight)}, needs to be 0 or 1.", hint)
    return weights if role == "assistant" else {}


def _is_thought(key: str, value: object) -> bool:
    return bool(words_of(key) & THOUGHT) and isinstance(value, str) and not is_nothing(value)


def _part(value: object, field: str, unread: Unread) -> tuple[str, bool]:
    """The text of a part of a message's content, and whether it is a thought."""
    kind = value.get("type") if isinstance(value, dict) else describe(value)
    if isinstance(value, dict):
        key = str(kind or "text")
        text = value.get(key, value.get("text"))
        if (key == "text" or words_of(key) & THOUGHT) and text is not None:
            unread.add(value, field, ("type", "text", key))
            return parse_text(text, f"{field}.{key}"), key != "text"
    raise MalformedRow(f"{field} is {kind}; images and other parts are not supported, only text.")


def align(prompt: Prompt, responses: Sequence[Prompt]) -> tuple[Prompt, tuple[Response, ...]]:
    """Prompt and responses in one form: all text, or conversations.

    A response may have several turns of the assistant, with those of others between them; turns with which all of
    several responses begin are prompt. Raises SkippedRow where a response's conversation leaves the prompt.
    """
    if isinstance(prompt, str):
        conversations = [response for response in responses if not isinstance(response, str)]
        if not conversations:
            return prompt, tuple(response for response in responses if isinstance(response, str))
        *earlier, _ = conversations[0]
        if earlier and earlier[0].role != "assistant":  # the messages hold the prompt too, and `prompt` repeats a turn
            repeated = [place for place, turn in enumerate(earlier) if turn.content.strip() == prompt.strip()]
            if not repeated:
                raise SkippedRow("prompt.differs", '"prompt" is not among the turns of the response\'s conversation.')
            says = [place for place in range(repeated[-1], len(earlier)) if earlier[place].role == "assistant"]
            prompt = tuple(earlier[: says[0] if says else len(earlier)])
        else:
            prompt = (Message("user", prompt),)
    sides = [_response_to(prompt, response) for response in responses]
    if not sides:
        return prompt, ()
    same = [tuple(replace(turn, learned=True) for turn in side) for side in sides]
    differs = min(
        (first_difference(same[0], other) - 1 for other in same[1:]), default=min(turns_of(sides[0]), default=0)
    )
    shared = max(place for place in range(differs + 1) if _can_start(sides, place))
    return (*prompt, *same[0][:shared]), tuple(side[shared:] for side in sides)


def _can_start(conversations: Sequence[Turns], place: int) -> bool:
    """Whether a turn of the assistant stands at a place of all conversations."""
    return all(len(turns) > place and turns[place].role == "assistant" for turns in conversations)


def _response_to(prompt: Turns, response: Prompt) -> Turns:
    """The turns with which a response goes on from the prompt: the assistant's, and what stands between them."""
    if isinstance(response, str):
        return (Message("assistant", response),)
    before = tuple(replace(turn, learned=True) for turn in response[: len(prompt)])
    repeats_prompt = len(response) > 1 and before == tuple(replace(turn, learned=True) for turn in prompt)
    turns = response[len(prompt) :] if repeats_prompt else response
    if not turns or turns[-1].role != "assistant":
        raise SkippedRow("turn.last", "the last turn is not the assistant's.")
    if turns[0].role != "assistant":
        turn = first_difference(prompt, response)
        raise SkippedRow("prompt.differs", f"the response's conversation leaves the prompt at turn {turn}.")
    return turns


def first_difference(turns: Turns, others: Turns) -> int:
    """The number of the first turn, counted from 1, in which two conversations differ."""
    pairs = enumerate(zip(turns, others, strict=False), 1)
    return next((number for number, (turn, other) in pairs if turn != other), min(len(turns), len(others)) + 1)


def whole_conversation(value: Prompt) -> Turns:
    """The turns of a conversation, or of a transcript. Raises SkippedRow where it does not end with a response."""
    turns = transcripts.parse(value) if isinstance(value, str) else value
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise SkippedRow("turn.last", "the last turn is not the assistant's, or nothing stands before it.")
    return turns


def split_first_turn(turns: Turns) -> tuple[Turns, Turns]:
    """A whole conversation as what stands before the first turn to learn from that answers somebody, and the rest up to
    the last turn to learn from. Raises SkippedRow where there is none."""
    asking = (place for place, turn in enumerate(turns) if turn.role in ASKING)
    asked = next(asking, 0)
    learned = [place for place in turns_of(turns) if place > asked]
    if not learned:
        raise SkippedRow("response.weight", "every response has the weight 0.")
    return turns[: learned[0]], turns[learned[0] : learned[-1] + 1]


def up_to_last_reply(row: Row) -> Row:
    """A conversation that ends with a question as the demo of the replies before it, if there are any; any other row as
    it is."""
    if not isinstance(row, Task) or isinstance(row.prompt, str):
        return row
    try:
        prompt, response = split_first_turn(row.prompt)
    except SkippedRow:
        return row
    return Demo(prompt=prompt, response=response, place=row.place, id=row.id, weight=row.weight, times=row.times,
                category=row.category)  # fmt: skip


def part(conversation: Turns, other: Turns) -> int:
    """The place at which two whole conversations part, where the assistant's turn is another one in each; else 0."""
    place = first_difference(conversation, other) - 1
    return place if _can_start([conversation, other], place) else 0

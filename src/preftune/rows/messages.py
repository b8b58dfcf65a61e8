"""Conversations: from JSON to turns, and prompt and responses brought into one form.

Prompt and responses end up as text alone, or as conversations in which each response is one assistant turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from preftune.errors import nearest
from preftune.rows import transcripts
from preftune.rows.parse import MalformedRow, SkippedRow, describe, first_of, parse_text, refuse_keys
from preftune.rows.row import ROLES, Message, Prompt, Response

OTHER_ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "model": "assistant", "observation": "tool"}
Turns = tuple[Message, ...]


def parse_turns(value: object, field: str) -> Prompt:
    """Text as it stands, or a conversation from a list of messages, one message, or an object that holds them.

    Raises MalformedRow.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        if "messages" in value:
            refuse_keys(value, ("tools",), f"{field}.")
            return parse_turns(value["messages"], f"{field}.messages")
        return (_message(value, field),)
    if not isinstance(value, list):
        needed = "needs text or a list of messages."
        raise MalformedRow(f'"{field}" is {describe(value)}, {needed}', "Quote it, or drop the row.")
    if not value:
        raise MalformedRow(f'"{field}" is an empty list, needs at least one message.')
    return tuple(_message(message, f"{field}[{position}]") for position, message in enumerate(value))


def _message(value: object, field: str) -> Message:
    if not isinstance(value, dict):
        raise MalformedRow(f"{field} is {describe(value)}, needs a message with a role and its content.")
    role = first_of(value, ("role", "from"), field)
    if not isinstance(role, str) or OTHER_ROLES.get(role, role) not in ROLES:
        hint = nearest(str(role), [*ROLES, *OTHER_ROLES]) or f"Known roles: {', '.join(ROLES)}."
        raise MalformedRow(f"{field}.role is {describe(role)}, which is no known role.", hint)
    refuse_keys(value, ("tool_calls", "images", "function_call"), f"{field}.")
    content = first_of(value, ("content", "value"), field)
    if isinstance(content, list):
        content = "".join(_part(part, f"{field}.content[{position}]") for position, part in enumerate(content))
    return Message(OTHER_ROLES.get(role, role), parse_text(content, f"{field}.content"))


def _part(value: object, field: str) -> str:
    if isinstance(value, dict) and value.get("type") == "text":
        return parse_text(value.get("text"), f"{field}.text")
    kind = value.get("type") if isinstance(value, dict) else describe(value)
    raise MalformedRow(f"{field} is {kind}; images and other parts are not supported, only text.")


def align(prompt: Prompt, responses: Sequence[Prompt]) -> tuple[Prompt, tuple[Response, ...]]:
    """Prompt and responses in one form: all text, or conversations with one assistant turn as each response.

    Raises SkippedRow where a response's conversation does not go on from the prompt.
    """
    if isinstance(prompt, str):
        conversations = [response for response in responses if not isinstance(response, str)]
        if not conversations:
            return prompt, tuple(response for response in responses if isinstance(response, str))
        *earlier, _ = conversations[0]
        if earlier:  # the messages hold the prompt too, and `prompt` repeats one of its turns
            if not any(turn.content.strip() == prompt.strip() for turn in earlier):
                raise SkippedRow("prompt.differs", '"prompt" is not among the turns of the response\'s conversation.')
            prompt = tuple(earlier)
        else:
            prompt = (Message("user", prompt),)
    return prompt, tuple(_response_to(prompt, response) for response in responses)


def _response_to(prompt: Turns, response: Prompt) -> Response:
    """The one assistant turn with which a response goes on from the prompt."""
    if isinstance(response, str):
        return (Message("assistant", response),)
    repeats_prompt = len(response) > 1 and response[: len(prompt)] == prompt
    turns = response[len(prompt) :] if repeats_prompt else response
    if not turns or turns[-1].role != "assistant":
        raise SkippedRow("turn.last", "the last turn is not the assistant's.")
    if len(turns) > 1:
        if turns[0].role != "assistant":
            turn = first_difference(prompt, response)
            raise SkippedRow("prompt.differs", f"the response's conversation leaves the prompt at turn {turn}.")
        raise SkippedRow("response.turns", "the response has several turns, and only one can be compared.")
    return turns


def first_difference(turns: Turns, others: Turns) -> int:
    """The number of the first turn, counted from 1, in which two conversations differ."""
    pairs = enumerate(zip(turns, others, strict=False), 1)
    return next((number for number, (turn, other) in pairs if turn != other), min(len(turns), len(others)) + 1)


def split_last_turn(conversation: Prompt) -> tuple[Turns, Response]:
    """A whole conversation as its prompt and the assistant's last turn. Raises SkippedRow."""
    turns = transcripts.parse(conversation) if isinstance(conversation, str) else conversation
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise SkippedRow("turn.last", "the last turn is not the assistant's, or nothing stands before it.")
    return turns[:-1], turns[-1:]

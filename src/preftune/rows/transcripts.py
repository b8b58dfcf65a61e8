"""Conversations written as one string, in the form of Anthropic's hh-rlhf (arXiv 2204.05862):

    <blank line>Human: a question<blank line>Assistant: its response

Such a string is split into turns when it is read. A conversation is written in the same form where a tokenizer has no
chat template of its own.
"""

from __future__ import annotations

import re

from preftune.rows.parse import SkippedRow
from preftune.rows.row import Message

NAMES = {"user": "Human", "assistant": "Assistant", "system": "System", "developer": "System", "tool": "Tool"}
_MARKER = re.compile(r"\n\n(Human|Assistant):")
# A speaker's name inside of a turn: what was one turn may have been two, so the split cannot be trusted.
_INSIDE = re.compile(r"(?:^|[\s\"'(])(?:Human|Assistant)s?\s?:")


def is_transcript(text: str) -> bool:
    """Whether the text begins with a human turn, as hh-rlhf writes it."""
    return text.startswith("\n\nHuman:")


def parse(text: str, last: str = "Assistant") -> tuple[Message, ...]:
    """The turns of a transcript. Raises SkippedRow where the split is in doubt.

    last: whose turn is the last; the name of the assistant with nothing behind it is no turn of a prompt.
    """
    _, *parts = _MARKER.split(text)
    names, contents = parts[::2], [content.strip() for content in parts[1::2]]
    if last == "Human" and names[-1] == "Assistant" and not contents[-1]:
        names, contents = names[:-1], contents[:-1]
    if names[-1] != last:
        raise SkippedRow("turn.last", f"the last turn is not the {last.lower()}'s.")
    for index, (name, content) in enumerate(zip(names, contents, strict=True)):
        if name != ("Human", "Assistant")[index % 2]:
            raise SkippedRow("turn.order", f"turn {index + 1} is again the {name.lower()}'s.")
        if _INSIDE.search(content):
            message = f"turn {index + 1} has the name of a speaker inside, so its end is in doubt."
            raise SkippedRow("turn.marker", message)
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[name], content) for name, content in zip(names, contents, strict=True))


def render(prompt: tuple[Message, ...]) -> str:
    """The prompt as a transcript that the assistant is to continue."""
    return "".join(f"\n\n{NAMES[turn.role]}: {turn.content}" for turn in prompt) + "\n\nAssistant:"


def response(content: str) -> str:
    """The assistant's turn, as it follows on `render`."""
    return " " + content

"""Thoughts before a response: where they end in its content, and how a model writes them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from preftune.rows.quality import is_blank


class Thought(NamedTuple):
    """A thought. lead, close: what its author wrote before and after it, "" where it stood beside the content."""

    lead: str
    text: str
    close: str


def split_thought(content: str, close: str) -> tuple[Thought | None, str]:
    """The thought that a content begins with, which ends with `close` such as </think>, and what follows it."""
    before, closing, text = content.partition(close or "\0")
    if not closing or is_blank(text):
        return None, content
    lead, opening, thought = before.partition(opening_of(close))
    if not opening or lead.strip():
        lead, opening, thought = "", "", before
    space = text[: len(text) - len(text.lstrip())]
    return Thought(lead + opening, thought, closing + space), text[len(space) :]


def opening_of(close: str) -> str:
    """<think> for </think>."""
    return close.replace("/", "", 1)


def written_out(text: str, thought: Thought, close: str, opened: str, turns: int) -> tuple[str, str]:
    """(prompt, the response as the model writes it after the prompt), for a template that cuts thoughts.

    opened: what the template gives a model that is to respond, and how many characters of it are earlier turns: it may
    open a thought for the model, or close an empty one.
    """
    opening = opening_of(close)
    lead, after = thought.lead or f"{opening}\n", thought.close or f"\n{close}\n\n"
    if opened.rstrip().endswith(close):
        opened = opened[: max(opened.rfind(opening), turns)]
    if opened.rstrip().endswith(opening):
        spaced = opened != opened.rstrip()
        return opened, (thought.text.lstrip() if spaced else thought.text) + after + text
    return opened, lead + thought.text + after + text


def letters(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())


def stand_in(parts: Sequence[str], words: str) -> bool:
    """Whether all parts stand in the words one after the other, white space aside."""
    rest = letters(words)
    for part in map(letters, parts):
        position = rest.find(part)
        if position < 0:
            return False
        rest = rest[position + len(part) :]
    return True

"""What a chat template puts around a response, where a thought before it ends, and how a model writes a thought out."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from preftune.rows.quality import is_blank

OPEN_TAG = re.compile(r"[<\[][^<>\[\]]*$")  # the beginning of a tag without its end


class Frame(NamedTuple):
    """What the template puts around a response.

    opened: what it gives a model that is to respond; turns: the part of it before the assistant's turn is opened;
    head, tail: what stands around the words of a response without thoughts; prompt: the part of head that is prompt.
    """

    opened: str
    turns: str
    head: str
    prompt: str
    tail: str

    def rendered(self, whole: str, is_call: bool) -> Words | None:
        """A response that a template renders otherwise than one of content alone; None where it does not follow on the
        earlier turns or ends otherwise. is_call: it calls tools, and many templates end such a turn in their own way.
        """
        prompt = self.prompt if is_call and whole.startswith(self.head) else shared_start([self.opened, whole])
        if len(prompt) < len(self.turns):
            return None
        if whole.endswith(self.tail):
            return Words(prompt, whole[len(prompt) : len(whole) - len(self.tail)])
        return Words(prompt, whole[len(prompt) :].rstrip(), ended=True) if is_call else None


class Words(NamedTuple):
    """A response as a template renders it, and the prompt before it. ended: its own end of turn is among the words."""

    prompt: str
    words: str
    ended: bool = False


def shared_start(texts: Sequence[str]) -> str:
    """The beginning that all texts share, without the first half of a tag such as <think>."""
    first, last = min(texts), max(texts)  # in the order of the alphabet, so the others lie between them
    if last.startswith(first):
        return first
    length = bisect_left(range(len(first)), True, key=lambda end: not last.startswith(first[: end + 1]))
    return OPEN_TAG.sub("", first[:length])


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

"""What a chat template puts around a response."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

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

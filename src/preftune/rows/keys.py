"""What a key that nothing reads means: one account for rows, messages and the parts of their content.

By the words of its name and by its value, a key may mean a judgement, another side, a picture, a tool, a thought, an
option of the template or a part of what was asked. Then a row would teach something else without it, so it is refused
by name; every other key is told. A key that holds nothing, or only what the row's texts hold already, changes nothing.
Held by tests/rows/test_keys.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import NoReturn

from preftune.rows.parse import MalformedRow

RESPONSE_KEYS = ("response", "answer", "completion", "text", "content")  # hold the response of an object of a list
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


OPTION = "kwarg"  # of chat_template_kwargs, which change the prompt even where they are false
PICTURE = _words("image picture photo video audio speech pixel img")
TOOL = _words("tool function")
THOUGHT = _words("thought thinking think reasoning cot scratchpad")
ASKED = _words("prompt question query instruction input context system history passage document background article")
ASKED_MORE = ASKED | _words("custom extra additional more user developer text message current previous reference")
OFFERED = _words("choice option a b c d e")  # what a question offers, in lists or letter by letter
SIDE = _words(
    "chosen rejected reject dispreferred preferred nonpreferred loser winning losing worse better worst best "
    "negative positive candidate"
)
RESPONSE = _words("response completion answer output generation reply")
MISSPELLED = ("chosen", "rejected", "response", "completion", "output")
ANOTHER = _words("other another alternative second third a b c j k 0 1 2 3 4")
JUDGEMENT = SIDE | _words(
    "score rating rate reward label rank ranking preference vote upvote downvote win winner feedback thumb judgment "
    "judgement verdict grade quality safe unsafe safety correct correctness incorrect accepted good bad helpful "
    "helpfulness harmless harmful harmlessness toxic like dislike star choice tie passed"
)
ABOUT = _words(  # such a key names, counts or describes something
    "id ids idx index uid uuid sha hash url uri link path file model source origin type kind name split subset version "
    "lang language date time timestamp created year seed num number count total length len size token turn position "
    "page line offset policy dataset ds domain topic category author config metadata meta template reason rationale "
    "explanation critique order raw statement elaboration similar probability logp logps logprob step epoch"
)


@lru_cache(4096)
def words_of(key: str) -> frozenset[str]:
    """The words of a key in the singular: `isSafe`, `is_safe` and `is-safe` alike."""
    words = (word.lower() for word in WORD.findall(key))
    return frozenset(word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] != "s" else word for word in words)


def is_nothing(value: object) -> bool:
    """Whether a value says nothing: null, false, 0, an empty text, list or object, or one of these as text."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "[]", "{}", "null", "none")
    if isinstance(value, Mapping):
        return all(map(is_nothing, value.values()))
    return all(map(is_nothing, value)) if isinstance(value, list) else not value


def refused_as(key: str, value: object, judged: bool, texts: Collection[str], *, drawn: bool = False) -> str:
    """What an unread key means where that changes what the row teaches, else nothing.

    key: with the keys above it, such as `chosen[].name`; judged: whether the row says how good its responses are;
    texts: those of the row; drawn: whether responses are drawn to it, so that a number by itself judges none.
    """
    above, _, name = key.rpartition(".")
    words = words_of(name)
    if OPTION in words and value not in ({}, ""):
        return "an option of the chat template"
    if words & PICTURE or words & TOOL or words & THOUGHT:
        kind = "a picture or a sound" if words & PICTURE else "a tool" if words & TOOL else "a thought"
        is_option = isinstance(value, bool) and not words & PICTURE  # such as OpenAI's parallel_tool_calls
        return "" if is_nothing(value) or is_option or words & {"num"} else kind
    if value is None or value in ("", [], {}):
        return ""
    plain = isinstance(value, bool | int | float)
    if not plain and all(any(leaf in text for text in texts) for leaf in _leaves(value)):
        return ""  # it says what the row holds already
    if not above and not plain and words <= ASKED_MORE and words & ASKED:
        return "a part of what was asked"
    if not above and not plain and words and words <= OFFERED and (len(key) == 1 or not isinstance(value, str)):
        return "a part of what was asked"
    if not plain and not words & ABOUT and (words & SIDE or (words & RESPONSE and words & ANOTHER)):
        return "another side"
    if judged:
        return ""
    named = not words & ABOUT and (words & JUDGEMENT or (plain and not above and not drawn))
    return "a judgement" if named or _grades(value) else ""


def may_be_response(key: str) -> bool:
    """Whether a key may hold a response or a judgement, by its words or as a misspelling of one."""
    words = words_of(key)
    spelled = any(get_close_matches(word, MISSPELLED, 1, 0.8) for word in words - ABOUT)
    return not words & ABOUT and (bool(words & (RESPONSE | JUDGEMENT)) or spelled)


def refuse(meanings: Mapping[str, str], intended: Mapping[str, str]) -> NoReturn:
    """Raise MalformedRow for keys with what they mean. intended: the key that each may have been meant for, or ""."""
    named = ", ".join(f'"{key}" ({meaning})' for key, meaning in meanings.items())
    hints = [f'Did you mean "{name}" by "{key}"?' for key, name in intended.items() if name]
    first = next(iter(meanings))
    if re.search(r"[.[]", first):
        hints.append("Leave such rows out, or write it into the text of the turn.")
    else:
        if "a judgement" in meanings.values():
            says = "If it says how good the response is, set"
            hints.append(f"{says} data.columns.{first}=label (true or false) or =score (a number).")
        if "an option of the chat template" in meanings.values():
            hints.append("Options for all rows are data.template_options.")
        if "a part of what was asked" in meanings.values():
            hints.append("Write what was asked into the prompt.")
        nothing = ", ".join(f'"{key}": ""' for key in meanings if not re.search(r"[.[]", key))
        hints.append(f"What may be left out is named so: data.columns={{{nothing}}}.")
    message = f"{named} is not read here, and leaving it out would change what the row means."
    raise MalformedRow(message, " ".join(hints), "key.meaning")


def _grades(value: object) -> bool:
    """Whether an object or a list holds a judgement inside."""
    if isinstance(value, Mapping):
        return any((words_of(key) & JUDGEMENT and not words_of(key) & ABOUT and not is_nothing(entry))
                   or _grades(entry) for key, entry in value.items())  # fmt: skip
    return isinstance(value, list) and any(map(_grades, value))


def _leaves(value: object) -> Iterator[str]:
    """The texts inside of a value, without the roles of messages; a number counts as its digits."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if key not in ("role", "from", "type"):
                yield from _leaves(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _leaves(entry)
    elif value is not None:
        yield str(value).strip()

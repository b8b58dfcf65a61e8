"""The forms in which people publish preferences, recognized from their keys; nobody is asked for a type.

`FORMATS` is the table. A slot lists the keys that may fill it, the first match first; a record has the first format
whose slots are all filled. Text under `prompt` is continued as it stands (as in TRL); text under `question`,
`problem`, `instruction` or `input` is what a user said: a conversation, which goes through the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from preftune.rows import build, ranked, verdicts
from preftune.rows.asked import NOTHING, Asked
from preftune.rows.keys import may_be_response, refuse, refused_as
from preftune.rows.parse import MalformedRow, SkippedRow
from preftune.rows.raw_row import ANSWERS, CATEGORY, SYSTEM, RawRow
from preftune.rows.row import Demo, Pair, Place, Row, responses
from preftune.rows.verdicts import BETTER, FIRST, SIGN

PROMPT = "prompt|question|problem|instruction|input|query"
TURNS = "conversations|messages|conversation"
RESPONSE = "completion|response|output|answer"
LABEL = "label|kto_tag|good"
CHOSEN, REJECTED = "chosen|chosen_response", "rejected|rejected_response|rejected_messages"
COMMON = ("id", "weight", *SYSTEM, *CATEGORY)
OTHER_NAMES = {"response_w": "chosen", "response_l": "rejected", "chosen_text": "chosen", "rejected_text": "rejected"}


class ReadRow(NamedTuple):
    """A row with the keys that nothing read, each with its value, and the key of its scores."""

    row: Row
    unread: dict[str, object]
    scale: str


class Format(Struct, frozen=True):
    """slots: name -> the keys that may fill it, separated by `|`; optional: keys that are read where they are there;
    bare: a record has this format only if no other key of it may be a response or a judgement."""

    name: str
    slots: dict[str, str]
    build: Callable[[RawRow], Row]
    optional: tuple[str, ...] = ()
    bare: bool = False

    def keys(self, value: Mapping[str, object]) -> dict[str, str]:
        """Slot -> the key that fills it, one that is not blank if there is any; empty slots are left out."""
        filled = {}
        for slot, keys in self.slots.items():
            present = [key for key in keys.split("|") if value.get(key) is not None]
            if slot == "response" and isinstance(value.get("answer"), int | float):  # a task's, for a verifier
                present = [key for key in present if key != "answer"]
            if present:
                filled[slot] = next((key for key in present if value[key] != ""), present[0])
        return filled

    def read(self, value: Mapping[str, object], place: Place, asked: Asked = NOTHING) -> ReadRow:
        """The row. asked: of columns that are read elsewhere. Raises SkippedRow, or MalformedRow, also for a key whose
        loss would change what the row means."""
        value = {key: entry for key, entry in value.items() if entry is not None}
        try:
            read = self.parse(value, place, asked.named)
        except MalformedRow as error:
            if error.reason == "row.missing" and (hints := _hints(value, [["prompt"]])):
                raise MalformedRow(error.message, hints, error.reason) from error
            raise
        if meanings := _meanings(read, drawn=asked.drawn):
            refuse(meanings, {key: intended_key(key, value) for key in meanings if key in value})
        return read

    def parse(self, value: Mapping[str, object], place: Place, asked: Collection[str] = ()) -> ReadRow:
        """The row, whatever the keys mean that are not read. Raises MalformedRow or SkippedRow."""
        raw = RawRow(value, place, self.keys(value))
        row = raw.with_tools_and_options(self.build(raw))
        row = replace(row, id=raw.id, weight=raw.weight, answer=raw.answer, category=raw.category)
        if wrong := [key for key in (*value, *raw.unread) if "token_weight" in key and key not in self.optional]:
            known = " and ".join(f'"{key}"' for key in self.optional if "token_weight" in key)
            known = known or ("token_weights in each entry of the list" if "items" in self.slots else "")
            hint = f"Here it is {known}." if known else ""
            raise MalformedRow(f'"{wrong[0]}" is not read in rows of the form {self.name}.', hint)
        read = {*COMMON, *self.optional, *asked, *raw.keys.values()}
        if "instruction" in read:
            read.add("input")
        unread = {**{key: entry for key, entry in value.items() if key not in read}, **raw.unread}
        return ReadRow(row, unread, raw.scale)


def _meanings(read: ReadRow, *, drawn: bool) -> dict[str, str]:
    """The unread keys without which the row would mean something else, and what each means."""
    if not read.unread:
        return {}
    parts = (read.row.prompt, *responses(read.row))
    texts = [part for part in parts if isinstance(part, str)]
    turns = [turn for part in parts if not isinstance(part, str) for turn in part]
    texts += [text for turn in turns for text in (turn.says, turn.thought)]
    labels, judged = LABEL.split("|") if isinstance(read.row, Pair) else [], not isinstance(read.row, Demo)
    meanings = {
        key: "a judgement" if key in labels else refused_as(key, value, judged, texts, drawn=drawn)
        for key, value in read.unread.items()
    }
    return {key: meaning for key, meaning in meanings.items() if meaning}


_PAIR = ("preferred", "margin", "chosen_token_weights", "rejected_token_weights")
_SIDES = "response_*|output_*|completion_*|answer_*|response*"
_VERDICTS = (  # two responses, whose keys differ in how they end, and the slot of the verdict
    ("output_*|human_ref_*", "AB", "first", FIRST),
    (_SIDES, "12", "sign", SIGN),
    *((_SIDES, ends, "better", BETTER) for ends in ("ab", "AB", "01", "12")),
)
_SINGLE = (*build.SCORES, "token_weights")
_ANSWER = "|".join(ANSWERS)
_WITH_RESPONSE = f"{CHOSEN}|{RESPONSE}"
FORMATS = (
    Format("votes", {"prompt": PROMPT, "a": "response_a", "b": "response_b", "va": "votes_a", "vb": "votes_b"},
           build.votes, ("votes_equal", "token_weights_a", "token_weights_b")),
    Format("OpenAI preferences", {"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"},
           build.pair, _PAIR),
    Format("pairs", {"prompt": PROMPT, "chosen": _WITH_RESPONSE, "rejected": REJECTED}, build.pair, _PAIR),
    Format("paired answers", {"prompt": PROMPT, "chosen": "response_j", "rejected": "response_k"}, build.pair, _PAIR),
    Format("conversations in pairs", {"prompt": TURNS, "chosen": CHOSEN, "rejected": REJECTED}, build.pair, _PAIR),
    Format("pairs with the prompt inside", {"chosen": CHOSEN, "rejected": REJECTED}, build.pair_with_prompt_inside,
           _PAIR),
    Format("conversations with another response", {"chosen": TURNS, "rejected": REJECTED},
           build.pair_with_prompt_inside, _PAIR),
    *(Format(f"two responses, {a} and {b}, with a {keys.partition('|')[0]}",
             {"prompt": f"{PROMPT}|{TURNS}|context|history", "a": sides.replace("*", a), "b": sides.replace("*", b),
              slot: keys}, verdicts.compared, ("margin",)) for sides, (a, b), slot, keys in _VERDICTS),
    Format("two conversations with a winner", {"a": "conversation_a", "b": "conversation_b", "better": BETTER},
           verdicts.compared, ("margin",)),
    Format("summaries with a choice", {"prompt": "info", "items": "summaries", "choice": "choice"}, verdicts.choice),
    Format("ranked completions in a context", {"prompt": "context", "items": "completions"},
           lambda raw: ranked.as_pair(ranked.ranked_objects(raw))),
    Format("rankings", {"prompt": f"{PROMPT}|{TURNS}", "responses": "responses|completions|outputs|generations",
                        "order": "ranks|rank|scores|rewards|ratings"}, ranked.ranked, ("scores", "token_weights")),
    Format("questions with calls", {"prompt": PROMPT, "calls": "answers", "tools": "tools"}, build.called),
    Format("scored lists", {"prompt": PROMPT, "items": "completions|answers|responses"}, ranked.ranked_objects),
    Format("ratings", {"prompt": PROMPT, "response": RESPONSE, "label": LABEL}, build.single, _SINGLE),
    Format("rated conversations", {"turns": TURNS, "label": LABEL}, build.conversation, _SINGLE),
    Format("demos", {"prompt": PROMPT, "response": RESPONSE}, build.single, _SINGLE),
    Format("conversations with an answer", {"turns": TURNS, "answer": _ANSWER}, build.conversation,
           _SINGLE),
    Format("conversations", {"turns": TURNS}, verdicts.conversation, _SINGLE),
    Format("tasks", {"prompt": PROMPT, "answer": _ANSWER}, build.task),
    Format("prompts", {"prompt": PROMPT}, build.task, bare=True),
    Format("texts", {"text": "text"}, build.text, bare=True),
)  # fmt: skip
KNOWN = frozenset({*COMMON, *build.SCORES_OF_PAIR}).union(
    *(form.optional for form in FORMATS), *(names.split("|") for form in FORMATS for names in form.slots.values())
)


def fitting(value: Mapping[str, object]) -> Format | None:
    """The format of a record: null is absent, and so is a blank response, if there is a format without it."""
    return _fitting_shape(tuple((key, _like(entry)) for key, entry in value.items() if entry is not None))


def _like(entry: object) -> str | int:
    """A value that stands for all that decide the form of a record as this one does: blank, a number, and any other."""
    return "" if entry == "" else 0 if isinstance(entry, int | float) else "text"


@lru_cache(1024)
def _fitting_shape(shape: tuple[tuple[str, str | int], ...]) -> Format | None:
    """The format of all records with these keys. shape: the keys that are not null, each with what its value is
    like."""
    value = dict(shape)
    bare = not any(may_be_response(key) for key in value if key not in PROMPT.split("|"))
    filled = [
        (form, keys) for form in FORMATS if len(keys := form.keys(value)) == len(form.slots) and (bare or not form.bare)
    ]
    full = (form for form, keys in filled if all(value[key] != "" for slot, key in keys.items() if slot != "prompt"))
    return next(full, filled[0][0] if filled else None)


def detect_format(value: Mapping[str, object]) -> Format:
    """The format of a record. Raises MalformedRow that names the missing keys of the most similar one."""
    if form := fitting(value):
        return form
    seen = ", ".join(value) or "none"
    near = max((form for form in FORMATS if not form.bare), key=lambda form: _similarity(form, value))
    missing = [keys.split("|") for slot, keys in near.slots.items() if slot not in near.keys(value)]
    hints = _hints(value, missing)
    if "text" in value:
        others = json.dumps({key: "" for key in value if may_be_response(key)})
        hints += f' A "text" alone is imitated. What may be left out is named so: data.columns={others}.'
    if not near.keys(value) and not hints:
        hint = 'Pairs need "prompt", "chosen" and "rejected".'
        raise MalformedRow(f"its keys are no known form of preferences: {seen}.", hint, "row.unknown")
    named = ", ".join(" or ".join(f'"{name}"' for name in names) for names in missing)
    needed = ", ".join(keys.split("|")[0] for keys in near.slots.values())
    hints += f" Most similar form: {near.name} ({needed})."
    raise MalformedRow(f"{named} is missing; keys seen: {seen}.", hints.lstrip(), "row.missing")


def is_hole(value: Mapping[str, object], form: Format) -> str:
    """The key of the form that is there and null, if nothing but such keys is missing from a record."""
    if None not in value.values():
        return ""
    keys = form.keys({key: "" if entry is None else entry for key, entry in value.items()})
    return next((key for key in keys.values() if value[key] is None), "") if len(keys) == len(form.slots) else ""


def _renamed(value: Mapping[str, object], missing: list[list[str]]) -> dict[str, str]:
    """The key of a record that may have been meant by each missing one: a similar name of as many words."""
    renamed = {}
    for names in missing:
        for key in value:
            other = OTHER_NAMES.get(key, "")
            if key in names or key in renamed:
                continue
            near = get_close_matches(key, [name for name in names if name.count("_") == key.count("_")], 1, 0.8)
            if other in names or near:
                renamed[key] = other if other in names else near[0]
                break
    return renamed


def _hints(value: Mapping[str, object], missing: list[list[str]]) -> str:
    """`Did you mean "chosen" by "choosen"?` for keys with which the record can be read, else nothing."""
    renamed = _renamed(value, missing)
    readable = _unread({renamed.get(key, key): entry for key, entry in value.items()}) is not None
    return " ".join(f'Did you mean "{name}" by "{key}"?' for key, name in renamed.items()) if readable else ""


def _unread(value: Mapping[str, object]) -> set[str] | None:
    """The keys of a record that nothing reads; None where it cannot be read."""
    form = fitting(value)
    try:
        return {*form.parse(value, Place("", 0)).unread} & {*value} if form else None
    except MalformedRow:
        return None
    except SkippedRow as error:
        return None if error.reason == "prompt.differs" else set()


def _similarity(form: Format, value: Mapping[str, object]) -> tuple[int, float]:
    """Few slots without any key that could be meant come first, then many slots with one."""
    filled = form.keys(value)
    near = len(_renamed(value, [keys.split("|") for slot, keys in form.slots.items() if slot not in filled]))
    return len(filled) + near - len(form.slots), len(filled) + 0.9 * near


def intended_key(key: str, value: Mapping[str, object]) -> str:
    """The key that an unread one may have been meant for: the record then reads, with all that is read now."""
    similar = [name for name in KNOWN - {*value} if name.count("_") == key.count("_")]
    for name in get_close_matches(key, sorted(similar), n=3, cutoff=0.8):
        unread = _unread({name if other == key else other: entry for other, entry in value.items()})
        if unread is not None and not unread - (_unread(value) or set()) - {key} and name not in unread:
            return name
    return ""

"""The forms in which people publish preferences, recognized from their keys; nobody is asked for a type.

`FORMATS` is the table. A slot lists the keys that may fill it, the first match first; a record has the first format
whose slots are all filled. Text under `prompt` is continued as it stands (as in TRL); text under `question`,
`instruction` or `input` is what a user said, so it becomes a conversation and goes through the chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from preftune.rows import build
from preftune.rows.build import SCORES, intended_key
from preftune.rows.parse import MalformedRow
from preftune.rows.raw_row import RawRow
from preftune.rows.row import Place, Row

PROMPT = "prompt|question|instruction|input"
TURNS = "conversations|messages|conversation"
RESPONSE = "completion|response|output|answer"
LABEL = "label|kto_tag|good"
CHOSEN, REJECTED = "chosen|chosen_response", "rejected|rejected_response"
COMMON = ("id", "weight", "system", "input")


class Format(Struct, frozen=True):
    """slots: name -> the keys that may fill it, separated by `|`; optional: keys that are read where they are there."""

    name: str
    slots: dict[str, str]
    build: Callable[[RawRow], Row]
    optional: tuple[str, ...] = ()

    def keys(self, value: Mapping[str, object]) -> dict[str, str]:
        """Slot -> the key that fills it; slots that nothing fills are left out."""
        filled = {slot: next((key for key in keys.split("|") if key in value), "") for slot, keys in self.slots.items()}
        return {slot: key for slot, key in filled.items() if key}

    def unread(self, value: Mapping[str, object]) -> list[str]:
        """The keys of the record that this format does not read."""
        read = {*COMMON, *self.optional, *self.keys(value).values()}
        return [key for key in value if key not in read]

    def read(self, value: Mapping[str, object], place: Place) -> Row:
        """The row. Raises MalformedRow or SkippedRow."""
        if wrong := next((key for key in value if "token_weight" in key and key not in self.optional), None):
            known = " and ".join(f'"{key}"' for key in self.optional if "token_weight" in key)
            hint = f"Here it is {known or 'token_weights in each entry of the list'}."
            raise MalformedRow(f'"{wrong}" is not read in rows of the form {self.name}.', hint)
        raw = RawRow(value, place, self.keys(value))
        return replace(self.build(raw), id=raw.id, weight=raw.weight)


_PAIR = ("preferred", "margin", "chosen_token_weights", "rejected_token_weights", *(k for keys in SCORES for k in keys))
_SINGLE = ("score", "token_weights")
FORMATS = (
    Format("votes", {"prompt": PROMPT, "a": "response_a", "b": "response_b", "va": "votes_a", "vb": "votes_b"},
           build.votes, ("votes_equal", "token_weights_a", "token_weights_b")),
    Format("OpenAI preferences", {"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"},
           build.pair, _PAIR),
    Format("pairs", {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED}, build.pair, _PAIR),
    Format("conversations in pairs", {"prompt": TURNS, "chosen": CHOSEN, "rejected": REJECTED}, build.pair, _PAIR),
    Format("pairs with the prompt inside", {"chosen": CHOSEN, "rejected": REJECTED}, build.pair_with_prompt_inside,
           _PAIR),
    Format("rankings", {"prompt": f"{PROMPT}|{TURNS}", "responses": "responses|completions|outputs|generations",
                        "order": "ranks|rank|scores|rewards"}, build.ranked, ("scores", "token_weights")),
    Format("scored lists", {"prompt": PROMPT, "items": "completions|answers|responses"}, build.ranked_objects),
    Format("ratings", {"prompt": PROMPT, "response": RESPONSE, "label": LABEL}, build.single, _SINGLE),
    Format("rated conversations", {"turns": TURNS, "label": LABEL}, build.conversation, _SINGLE),
    Format("demos", {"prompt": PROMPT, "response": RESPONSE}, build.single, _SINGLE),
    Format("conversations", {"turns": TURNS}, build.conversation, _SINGLE),
)  # fmt: skip


def detect_format(value: Mapping[str, object]) -> Format:
    """The format of a record. Raises MalformedRow that names the missing keys of the most similar one."""
    for form in FORMATS:
        if len(form.keys(value)) == len(form.slots):
            return form
    seen = ", ".join(map(str, value)) or "none"
    near = max(FORMATS, key=lambda form: _similarity(form, value))
    missing = [keys.split("|") for slot, keys in near.slots.items() if slot not in near.keys(value)]
    hints = [hint for names in missing for hint in (intended_key(names, value),) if hint]
    if not near.keys(value) and not hints:
        hint = 'Pairs need "prompt", "chosen" and "rejected".'
        raise MalformedRow(f"its keys are no known form of preferences: {seen}.", hint, "row.unknown")
    named = ", ".join(" or ".join(f'"{name}"' for name in names) for names in missing)
    needed = ", ".join(keys.split("|")[0] for keys in near.slots.values())
    hints.append(f"Most similar form: {near.name} ({needed}).")
    raise MalformedRow(f"{named} is missing; keys seen: {seen}.", " ".join(hints), "row.missing")


def _similarity(form: Format, value: Mapping[str, object]) -> tuple[int, float]:
    """Few slots without any key that could be meant come first, then many slots with one."""
    filled = form.keys(value)
    near = sum(bool(intended_key(keys.split("|"), value)) for slot, keys in form.slots.items() if slot not in filled)
    return len(filled) + near - len(form.slots), len(filled) + 0.9 * near

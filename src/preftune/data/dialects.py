"""Forms in which people keep preferences, recognised from their keys; nobody is asked for a type.

`DIALECTS` is the table. A slot lists the keys that may fill it, first match first; a record speaks the first
dialect whose slots are all filled. Text under `prompt` is continued as it stands (TRL's meaning); text under
`question`, `instruction` or `input` is what a user said, so it becomes a conversation and goes through the template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct

from preftune.data import transcripts
from preftune.data.fields import Defect, Unusable, count, describe, items, label, number, refuse, text, turns
from preftune.data.rows import Demo, Message, Pair, Place, Prompt, Ranking, Rating, Response, Row
from preftune.errors import nearest

PROMPT = "prompt|question|instruction|input"
TURNS = "conversations|messages|conversation"
ONE = "completion|response|output|answer"
LABEL = "label|kto_tag|good"
CHOSEN, REJECTED = "chosen|chosen_response", "rejected|rejected_response"
COMMON = ("id", "weight", "system", "input")
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"),
          ("chosen-rating", "rejected-rating"))  # fmt: skip
UNSUPPORTED = ("tools", "history", "images", "videos", "audios")
HINTS = {"response_w": "chosen", "response_l": "rejected", "chosen_text": "chosen", "rejected_text": "rejected"}


class Fields:
    """One record seen through its dialect: a slot's name stands for whichever key filled it."""

    def __init__(self, value: Mapping[str, object], place: Place, keys: Mapping[str, str]) -> None:
        self.value, self.place, self.keys = value, place, keys
        refuse(value, UNSUPPORTED)

    def __getitem__(self, slot: str) -> object:
        return self.value[self.keys[slot]]

    def turns(self, slot: str) -> Prompt:
        return turns(self[slot], self.keys[slot])

    def optional(self, key: str) -> float | None:
        """A number that need not be there."""
        return None if self.value.get(key) is None else number(self.value[key], key)

    @property
    def id(self) -> str:
        found = self.value.get("id")
        if found is not None and (isinstance(found, bool) or not isinstance(found, str | int)):
            raise Defect(f'"id" is {describe(found)}, needs text or a whole number.')
        return "" if found is None else str(found)

    @property
    def weight(self) -> float:
        found = self.optional("weight")
        if found is not None and found <= 0:
            raise Defect(f'"weight" is {found:g}, needs to be above 0.')
        return 1.0 if found is None else found

    def prompt(self) -> Prompt:
        """The prompt slot, with a system text and an alpaca `input` where the record has them."""
        key, found = self.keys["prompt"], self.turns("prompt")
        if isinstance(found, str) and key != "prompt":
            more = self.value.get("input") if key == "instruction" else None
            found = (Message("user", f"{found}\n{text(more, 'input')}" if more else found),)
        system = self.value.get("system")
        if not system:
            return found
        said = (Message("user", found),) if isinstance(found, str) else found
        return said if said[0].role == "system" else (Message("system", text(system, "system")), *said)


def join(prompt: Prompt, given: list[Prompt]) -> tuple[Prompt, tuple[Response, ...]]:
    """Prompt and responses in one form: all text, or all conversations with one assistant turn as the response."""
    if isinstance(prompt, str):
        said = [one for one in given if not isinstance(one, str)]
        if not said:
            return prompt, tuple(one for one in given if isinstance(one, str))
        if len(said[0]) > 1:  # the messages hold the prompt too, and `prompt` repeats one of its turns
            if not any(turn.content.strip() == prompt.strip() for turn in said[0][:-1]):
                raise Unusable("prompt.differs", '"prompt" is not among the turns of the response\'s conversation.')
            prompt = said[0][:-1]
        else:
            prompt = (Message("user", prompt),)
    return prompt, tuple(_answered(prompt, one) for one in given)


def _answered(prompt: tuple[Message, ...], given: Prompt) -> Response:
    if isinstance(given, str):
        return (Message("assistant", given),)
    rest = given[len(prompt) :] if len(given) > 1 and given[: len(prompt)] == prompt else given
    if not rest or rest[-1].role != "assistant":
        raise Unusable("turn.last", "the last turn is not the assistant's.")
    if len(rest) > 1:
        if rest[0].role != "assistant":
            raise Unusable("prompt.differs", f"the response's conversation leaves the prompt {_first(prompt, given)}.")
        raise Unusable("response.turns", "the response has several turns, and only one can be compared.")
    return rest


def _first(one: tuple[Message, ...], other: tuple[Message, ...]) -> str:
    shared = next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"at turn {shared + 1}"


def _split(found: Prompt) -> tuple[tuple[Message, ...], Response]:
    """A whole conversation as its prompt and the assistant's last turn."""
    said = transcripts.parse(found) if isinstance(found, str) else found
    if len(said) < 2 or said[-1].role != "assistant":
        raise Unusable("turn.last", "the last turn is not the assistant's, or nothing stands before it.")
    return said[:-1], said[-1:]


def _pair(f: Fields) -> Row:
    prompt, (chosen, rejected) = join(f.prompt(), [f.turns("chosen"), f.turns("rejected")])
    return _as_pair(f, prompt, chosen, rejected)


def _whole_pair(f: Fields) -> Row:
    sides = f.turns("chosen"), f.turns("rejected")
    if any(isinstance(side, str) and not transcripts.is_transcript(side) for side in sides):
        if any(isinstance(side, str) and transcripts.is_transcript(side) for side in sides):
            raise Unusable("turn.first", "one side is a transcript that begins with a human turn, the other is not.")
        mend = 'Text under "chosen" and "rejected" needs its prompt, unless both are Human/Assistant transcripts.'
        raise Defect('"prompt" is missing.', _spelling(["prompt"], f.value) or mend, "row.missing")
    if sides[0] == sides[1]:
        raise Unusable("pair.identical", "chosen and rejected are the same.")
    (one, chosen), (other, rejected) = _split(sides[0]), _split(sides[1])
    if one != other:
        raise Unusable("prompt.differs", f"chosen and rejected have different prompts: they part {_first(one, other)}.")
    return _as_pair(f, one, chosen, rejected)


def _as_pair(f: Fields, prompt: Prompt, chosen: Response, rejected: Response) -> Pair:
    found = next((keys for keys in SCORES if all(f.value.get(key) is not None for key in keys)), None)
    scores = (number(f.value[found[0]], found[0]), number(f.value[found[1]], found[1])) if found else None
    share = f.optional("preferred")
    if share is not None and not 0 <= share <= 1:
        raise Defect(f'"preferred" is {share:g}, needs a share between 0 and 1.')
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected, place=f.place, id=f.id, scores=scores,
                preferred=1.0 if share is None else share, weight=f.weight)  # fmt: skip


def _votes(f: Fields) -> Row:
    """The response with more votes is chosen; votes for a tie count half for each side."""
    prompt, (a, b) = join(f.prompt(), [f.turns("a"), f.turns("b")])
    for_a, for_b, even = (count(f.value.get(key) or 0, key) for key in ("votes_a", "votes_b", "votes_equal"))
    if for_a + for_b + even == 0:
        raise Unusable("votes.none", "nobody voted.")
    share = (for_a + even / 2) / (for_a + for_b + even)
    chosen, rejected, share = (a, b, share) if share >= 0.5 else (b, a, 1 - share)
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected, place=f.place, id=f.id, preferred=share,
                weight=f.weight)  # fmt: skip


def _ranked(f: Fields) -> Row:
    """Responses beside their ranks (1 best) or scores (highest best)."""
    name = f.keys["responses"]
    given = [turns(one, f"{name}[{k}]") for k, one in enumerate(items(f["responses"], name))]
    key = f.keys["order"]
    order = [number(one, f"{key}[{k}]") for k, one in enumerate(items(f["order"], key))]
    if len(order) != len(given):
        raise Defect(f'"{key}" has {len(order)} entries for {len(given)} responses.')
    also = f.value.get("scores")
    scores = [number(one, f"scores[{k}]") for k, one in enumerate(items(also, "scores"))] if also else None
    if scores is not None and len(scores) != len(given):
        raise Defect(f'"scores" has {len(scores)} entries for {len(given)} responses.')
    return _ranking(f, given, order if key in ("ranks", "rank") else [-one for one in order],
                    order if key == "rewards" else scores)  # fmt: skip


def _listed(f: Fields) -> Row:
    """Objects that hold a response and its rank or score, as in UltraFeedback and Nectar.

    UltraFeedback's overall score of 10 is at times a misread 1, so the mean of its four aspects goes first.
    """
    given, ranks, scores = [], [], []
    for k, one in enumerate(items(f["items"], f.keys["items"])):
        where = f"{f.keys['items']}[{k}]"
        if not isinstance(one, dict):
            raise Defect(f"{where} is {describe(one)}, needs an object with a response and its score.")
        said = next((key for key in ("response", "answer", "text", "content") if key in one), "response")
        grades = ("rank", "fine-grained_score", "overall_score", "score", "rating")
        grade = next((key for key in grades if one.get(key) is not None), None)
        if grade is None:
            raise Defect(f"{where} has neither rank nor score.", f"Seen: {', '.join(one)}.", "row.missing")
        given.append(text(one.get(said), f"{where}.{said}"))
        value = number(one[grade], f"{where}.{grade}")
        ranks.append(value if grade == "rank" else -value)
        if grade != "rank":
            scores.append(value)
    return _ranking(f, given, ranks, scores if len(scores) == len(given) else None)


def _ranking(f: Fields, given: list[Prompt], order: list[float], scores: list[float] | None) -> Ranking:
    """order: any numbers of which the smallest is the best; they become 1, 2, ... with ties kept."""
    prompt, responses = join(f.prompt(), given)
    places = {value: k for k, value in enumerate(sorted(set(order)), 1)}
    return Ranking(prompt=prompt, responses=responses, ranks=tuple(places[value] for value in order), place=f.place,
                   id=f.id, scores=None if scores is None else tuple(scores), weight=f.weight)  # fmt: skip


def _single(f: Fields) -> Row:
    prompt, (response,) = join(f.prompt(), [f.turns("response")])
    return _judged(f, prompt, response)


def _whole(f: Fields) -> Row:
    found = f.turns("turns")
    if isinstance(found, str):
        raise Defect(f'"{f.keys["turns"]}" is a text, needs a list of messages.')
    system = f.value.get("system")
    first = (Message("system", text(system, "system")),) if system and found[0].role != "system" else ()
    return _judged(f, *_split((*first, *found)))


def _judged(f: Fields, prompt: Prompt, response: Response) -> Row:
    if "label" not in f.keys:
        return Demo(prompt=prompt, response=response, place=f.place, id=f.id, weight=f.weight)
    good = label(f["label"], f.keys["label"])
    return Rating(prompt=prompt, response=response, good=good, place=f.place, id=f.id, score=f.optional("score"),
                  weight=f.weight)  # fmt: skip


class Dialect(Struct, frozen=True):
    """slots: name -> keys that may fill it, parted by `|`; also: keys that are read where they are there."""

    name: str
    slots: dict[str, str]
    build: Callable[[Fields], Row]
    also: tuple[str, ...] = ()

    def keys(self, value: Mapping[str, object]) -> dict[str, str]:
        """Slot -> the key that fills it; slots that nothing fills are left out."""
        found = {slot: next((key for key in keys.split("|") if key in value), "") for slot, keys in self.slots.items()}
        return {slot: key for slot, key in found.items() if key}

    def read(self, value: Mapping[str, object], place: Place) -> Row:
        """The row. Raises Defect or Unusable."""
        return self.build(Fields(value, place, self.keys(value)))


_SCORED = ("preferred", *(key for keys in SCORES for key in keys))
DIALECTS = (
    Dialect("votes", {"prompt": PROMPT, "a": "response_a", "b": "response_b", "va": "votes_a", "vb": "votes_b"}, _votes,
            ("votes_equal",)),
    Dialect("OpenAI preferences",
            {"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"}, _pair),
    Dialect("pairs", {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED}, _pair, _SCORED),
    Dialect("conversations in pairs", {"prompt": TURNS, "chosen": CHOSEN, "rejected": REJECTED}, _pair, _SCORED),
    Dialect("pairs with the prompt inside", {"chosen": CHOSEN, "rejected": REJECTED}, _whole_pair, _SCORED),
    Dialect("rankings", {"prompt": f"{PROMPT}|{TURNS}", "responses": "responses|completions|outputs",
                         "order": "ranks|rank|scores|rewards"}, _ranked, ("scores",)),
    Dialect("scored lists", {"prompt": PROMPT, "items": "completions|answers|responses"}, _listed),
    Dialect("ratings", {"prompt": PROMPT, "response": ONE, "label": LABEL}, _single, ("score",)),
    Dialect("rated conversations", {"turns": TURNS, "label": LABEL}, _whole, ("score",)),
    Dialect("demos", {"prompt": PROMPT, "response": ONE}, _single),
    Dialect("conversations", {"turns": TURNS}, _whole),
)  # fmt: skip


def recognise(value: Mapping[str, object]) -> Dialect:
    """The dialect of a record. Raises Defect that names the missing keys of the nearest one."""
    for dialect in DIALECTS:
        if len(dialect.keys(value)) == len(dialect.slots):
            return dialect
    seen = ", ".join(map(str, value)) or "none"
    near = max(DIALECTS, key=lambda dialect: _likeness(dialect, value))
    lacking = [keys.split("|") for slot, keys in near.slots.items() if slot not in near.keys(value)]
    missing = ", ".join(" or ".join(f'"{name}"' for name in names) for names in lacking)
    spelt = [hint for names in lacking for hint in (_spelling(names, value),) if hint]
    needs = ", ".join(keys.split("|")[0] for keys in near.slots.values())
    if not near.keys(value) and not spelt:
        raise Defect(f"its keys are no known form of preferences: {seen}.",
                     'Pairs need "prompt", "chosen" and "rejected".', "row.unknown")  # fmt: skip
    raise Defect(f"{missing} is missing; keys seen: {seen}.",
                 " ".join([*spelt, f"Nearest known form: {near.name} ({needs})."]), "row.missing")  # fmt: skip


def _likeness(dialect: Dialect, value: Mapping[str, object]) -> tuple[int, float]:
    """Few slots without any key that could be meant come first, then many slots with one."""
    filled = dialect.keys(value)
    near = sum(bool(_spelling(keys.split("|"), value)) for slot, keys in dialect.slots.items() if slot not in filled)
    return len(filled) + near - len(dialect.slots), len(filled) + 0.9 * near


def _spelling(names: list[str], value: Mapping[str, object]) -> str:
    """`Did you mean "chosen"?` where a key of the record is nearly one of `names`."""
    for key in map(str, value):
        if HINTS.get(key) in names:
            return f'Did you mean "{HINTS[key]}" by "{key}"?'
        if key not in names and (hint := nearest(key, names)):
            return hint.replace("?", f' by "{key}"?')
    return ""

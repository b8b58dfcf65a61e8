"""Forms in which people keep preferences, recognized from their keys; nobody is asked for a type.

`DIALECTS` is the table. A slot lists the keys that may fill it, first match first; a record speaks the first
dialect whose slots are all filled. Text under `prompt` is continued as it stands (TRL's meaning); text under
`question`, `instruction` or `input` is what a user said, so it becomes a conversation and goes through the template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from preftune.errors import nearest
from preftune.rows import transcripts
from preftune.rows.parse import MalformedRow, SkippedRow, count, describe, items, label, number, text, turns
from preftune.rows.raw_row import RawRow
from preftune.rows.row import Demo, Message, Pair, Place, Prompt, Ranking, Rating, Response, Row

PROMPT = "prompt|question|instruction|input"
TURNS = "conversations|messages|conversation"
ONE = "completion|response|output|answer"
LABEL = "label|kto_tag|good"
CHOSEN, REJECTED = "chosen|chosen_response", "rejected|rejected_response"
COMMON = ("id", "weight", "system", "input")
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"),
          ("chosen-rating", "rejected-rating"))  # fmt: skip
HINTS = {"response_w": "chosen", "response_l": "rejected", "chosen_text": "chosen", "rejected_text": "rejected"}


def join(prompt: Prompt, given: list[Prompt]) -> tuple[Prompt, tuple[Response, ...]]:
    """Prompt and responses in one form: all text, or all conversations with one assistant turn as the response."""
    if isinstance(prompt, str):
        said = [one for one in given if not isinstance(one, str)]
        if not said:
            return prompt, tuple(one for one in given if isinstance(one, str))
        if len(said[0]) > 1:  # the messages hold the prompt too, and `prompt` repeats one of its turns
            if not any(turn.content.strip() == prompt.strip() for turn in said[0][:-1]):
                raise SkippedRow("prompt.differs", '"prompt" is not among the turns of the response\'s conversation.')
            prompt = said[0][:-1]
        else:
            prompt = (Message("user", prompt),)
    return prompt, tuple(_answered(prompt, one) for one in given)


def _answered(prompt: tuple[Message, ...], given: Prompt) -> Response:
    if isinstance(given, str):
        return (Message("assistant", given),)
    rest = given[len(prompt) :] if len(given) > 1 and given[: len(prompt)] == prompt else given
    if not rest or rest[-1].role != "assistant":
        raise SkippedRow("turn.last", "the last turn is not the assistant's.")
    if len(rest) > 1:
        if rest[0].role != "assistant":
            raise SkippedRow(
                "prompt.differs", f"the response's conversation leaves the prompt {_first(prompt, given)}."
            )
        raise SkippedRow("response.turns", "the response has several turns, and only one can be compared.")
    return rest


def _first(one: tuple[Message, ...], other: tuple[Message, ...]) -> str:
    shared = next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"at turn {shared + 1}"


def _split(found: Prompt) -> tuple[tuple[Message, ...], Response]:
    """A whole conversation as its prompt and the assistant's last turn."""
    said = transcripts.parse(found) if isinstance(found, str) else found
    if len(said) < 2 or said[-1].role != "assistant":
        raise SkippedRow("turn.last", "the last turn is not the assistant's, or nothing stands before it.")
    return said[:-1], said[-1:]


def _pair(f: RawRow) -> Row:
    prompt, (chosen, rejected) = join(f.prompt(), [f.turns("chosen"), f.turns("rejected")])
    return _as_pair(f, prompt, chosen, rejected)


def _whole_pair(f: RawRow) -> Row:
    sides = f.turns("chosen"), f.turns("rejected")
    if any(isinstance(side, str) and not transcripts.is_transcript(side) for side in sides):
        if any(isinstance(side, str) and transcripts.is_transcript(side) for side in sides):
            raise SkippedRow("turn.first", "one side is a transcript that begins with a human turn, the other is not.")
        hint = 'Text under "chosen" and "rejected" needs its prompt, unless both are Human/Assistant transcripts.'
        raise MalformedRow('"prompt" is missing.', _spelling(["prompt"], f.value) or hint, "row.missing")
    if sides[0] == sides[1]:
        raise SkippedRow("pair.identical", "chosen and rejected are the same.")
    (one, chosen), (other, rejected) = _split(sides[0]), _split(sides[1])
    if one != other:
        raise SkippedRow(
            "prompt.differs", f"chosen and rejected have different prompts: they part {_first(one, other)}."
        )
    return _as_pair(f, one, chosen, rejected)


def _as_pair(f: RawRow, prompt: Prompt, chosen: Response, rejected: Response) -> Pair:
    share = f.optional("preferred")
    if share is not None and not 0 <= share <= 1:
        raise MalformedRow(f'"preferred" is {share:g}, needs a share between 0 and 1.')
    weights = f.weighs(("chosen_token_weights", "rejected_token_weights"), (chosen, rejected))
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected, place=f.place, id=f.id, scores=_pair_scores(f),
                preferred=1.0 if share is None else share, weight=f.weight, token_weights=weights)  # fmt: skip


def _pair_scores(f: RawRow) -> tuple[float, float] | None:
    """Both scores; a margin alone is a score above and below 0 by half of it each."""
    found = next((keys for keys in SCORES if all(f.value.get(key) is not None for key in keys)), None)
    margin = f.optional("margin")
    if found is None:
        return None if margin is None else (margin / 2, -margin / 2)
    chosen, rejected = (number(f.value[key], key) for key in found)
    if margin is not None and abs(chosen - rejected - margin) > 1e-6 * max(1.0, abs(margin)):
        raise MalformedRow(f'"margin" is {margin:g}, but "{found[0]}" minus "{found[1]}" is {chosen - rejected:g}.',
                     "Leave one of the two out.")  # fmt: skip
    return chosen, rejected


def _votes(f: RawRow) -> Row:
    """The response with more votes is chosen; votes for a tie count half for each side."""
    prompt, (a, b) = join(f.prompt(), [f.turns("a"), f.turns("b")])
    for_a, for_b, even = (count(f.value.get(key) or 0, key) for key in ("votes_a", "votes_b", "votes_equal"))
    if for_a + for_b + even == 0:
        raise SkippedRow("votes.none", "nobody voted.")
    share = (for_a + even / 2) / (for_a + for_b + even)
    weights = f.weighs(("token_weights_a", "token_weights_b"), (a, b))
    if share < 0.5:
        a, b, share, weights = b, a, 1 - share, weights and weights[::-1]
    return Pair(prompt=prompt, chosen=a, rejected=b, place=f.place, id=f.id, preferred=share, weight=f.weight,
                token_weights=weights)  # fmt: skip


def _ranked(f: RawRow) -> Row:
    """Responses beside their ranks (1 best) or scores (highest best)."""
    name = f.keys["responses"]
    given = [turns(one, f"{name}[{k}]") for k, one in enumerate(items(f["responses"], name))]
    key = f.keys["order"]
    order = [number(one, f"{key}[{k}]") for k, one in enumerate(items(f["order"], key))]
    if len(order) != len(given):
        raise MalformedRow(f'"{key}" has {len(order)} entries for {len(given)} responses.')
    also = f.value.get("scores")
    scores = [number(one, f"scores[{k}]") for k, one in enumerate(items(also, "scores"))] if also else None
    if scores is not None and len(scores) != len(given):
        raise MalformedRow(f'"scores" has {len(scores)} entries for {len(given)} responses.')
    return _ranking(f, given, order if key in ("ranks", "rank") else [-one for one in order],
                    order if key == "rewards" else scores)  # fmt: skip


def _listed(f: RawRow) -> Row:
    """Objects that hold a response and its rank or score, as in UltraFeedback and Nectar.

    UltraFeedback's overall score of 10 is at times a misread 1, so the mean of its four aspects goes first.
    """
    given, ranks, scores, weights = [], [], [], []
    for k, one in enumerate(items(f["items"], f.keys["items"])):
        location = f"{f.keys['items']}[{k}]"
        if not isinstance(one, dict):
            raise MalformedRow(f"{location} is {describe(one)}, needs an object with a response and its score.")
        said = next((key for key in ("response", "answer", "text", "content") if key in one), "response")
        grades = ("rank", "fine-grained_score", "overall_score", "score", "rating")
        grade = next((key for key in grades if one.get(key) is not None), None)
        if grade is None:
            raise MalformedRow(f"{location} has neither rank nor score.", f"Seen: {', '.join(one)}.", "row.missing")
        given.append(text(one.get(said), f"{location}.{said}"))
        weights.append((one.get("token_weights"), f"{location}.token_weights"))
        value = number(one[grade], f"{location}.{grade}")
        ranks.append(value if grade == "rank" else -value)
        if grade != "rank":
            scores.append(value)
    row = _ranking(f, given, ranks, scores if len(scores) == len(given) else None)
    return replace(row, token_weights=f.weighed(weights, row.responses))


def _ranking(f: RawRow, given: list[Prompt], order: list[float], scores: list[float] | None) -> Ranking:
    """order: any numbers of which the smallest is the best; they become 1, 2, ... with ties kept."""
    prompt, responses = join(f.prompt(), given)
    places = {value: k for k, value in enumerate(sorted(set(order)), 1)}
    return Ranking(prompt=prompt, responses=responses, ranks=tuple(places[value] for value in order), place=f.place,
                   id=f.id, scores=None if scores is None else tuple(scores), weight=f.weight,
                   token_weights=f.listed_weights(responses))  # fmt: skip


def _single(f: RawRow) -> Row:
    prompt, (response,) = join(f.prompt(), [f.turns("response")])
    return _judged(f, prompt, response)


def _whole(f: RawRow) -> Row:
    found = f.turns("turns")
    if isinstance(found, str):
        raise MalformedRow(f'"{f.keys["turns"]}" is a text, needs a list of messages.')
    system = f.value.get("system")
    first = (Message("system", text(system, "system")),) if system and found[0].role != "system" else ()
    return _judged(f, *_split((*first, *found)))


def _judged(f: RawRow, prompt: Prompt, response: Response) -> Row:
    """A rating where there is a label or a score, a demo otherwise."""
    good = label(f["label"], f.keys["label"]) if "label" in f.keys else None
    score, weights = f.optional("score"), f.weighs(("token_weights",), (response,))
    if good is None and score is None:
        return Demo(prompt=prompt, response=response, place=f.place, id=f.id, weight=f.weight, token_weights=weights)
    return Rating(prompt=prompt, response=response, good=good, place=f.place, id=f.id, score=score, weight=f.weight,
                  token_weights=weights)  # fmt: skip


class Format(Struct, frozen=True):
    """slots: name -> keys that may fill it, parted by `|`; also: keys that are read where they are there."""

    name: str
    slots: dict[str, str]
    build: Callable[[RawRow], Row]
    also: tuple[str, ...] = ()

    def keys(self, value: Mapping[str, object]) -> dict[str, str]:
        """Slot -> the key that fills it; slots that nothing fills are left out."""
        found = {slot: next((key for key in keys.split("|") if key in value), "") for slot, keys in self.slots.items()}
        return {slot: key for slot, key in found.items() if key}

    def read(self, value: Mapping[str, object], place: Place) -> Row:
        """The row. Raises Defect or Unusable."""
        if wrong := next((key for key in value if "token_weight" in key and key not in self.also), None):
            known = " and ".join(f'"{key}"' for key in self.also if "token_weight" in key)
            raise MalformedRow(f'"{wrong}" is not read in rows of the form {self.name}.',
                         f"Here it is {known or 'token_weights in each entry of the list'}.")  # fmt: skip
        return self.build(RawRow(value, place, self.keys(value)))


_BOTH = ("preferred", "margin", "chosen_token_weights", "rejected_token_weights", *(k for keys in SCORES for k in keys))
_ONE = ("score", "token_weights")
FORMATS = (
    Format("votes", {"prompt": PROMPT, "a": "response_a", "b": "response_b", "va": "votes_a", "vb": "votes_b"}, _votes,
            ("votes_equal", "token_weights_a", "token_weights_b")),
    Format("OpenAI preferences",
            {"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"}, _pair, _BOTH),
    Format("pairs", {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED}, _pair, _BOTH),
    Format("conversations in pairs", {"prompt": TURNS, "chosen": CHOSEN, "rejected": REJECTED}, _pair, _BOTH),
    Format("pairs with the prompt inside", {"chosen": CHOSEN, "rejected": REJECTED}, _whole_pair, _BOTH),
    Format("rankings", {"prompt": f"{PROMPT}|{TURNS}", "responses": "responses|completions|outputs|generations",
                         "order": "ranks|rank|scores|rewards"}, _ranked, ("scores", "token_weights")),
    Format("scored lists", {"prompt": PROMPT, "items": "completions|answers|responses"}, _listed),
    Format("ratings", {"prompt": PROMPT, "response": ONE, "label": LABEL}, _single, _ONE),
    Format("rated conversations", {"turns": TURNS, "label": LABEL}, _whole, _ONE),
    Format("demos", {"prompt": PROMPT, "response": ONE}, _single, _ONE),
    Format("conversations", {"turns": TURNS}, _whole, _ONE),
)  # fmt: skip


def detect_format(value: Mapping[str, object]) -> Format:
    """The dialect of a record. Raises Defect that names the missing keys of the nearest one."""
    for dialect in FORMATS:
        if len(dialect.keys(value)) == len(dialect.slots):
            return dialect
    seen = ", ".join(map(str, value)) or "none"
    near = max(FORMATS, key=lambda dialect: _similarity(dialect, value))
    lacking = [keys.split("|") for slot, keys in near.slots.items() if slot not in near.keys(value)]
    missing = ", ".join(" or ".join(f'"{name}"' for name in names) for names in lacking)
    spelt = [hint for names in lacking for hint in (_spelling(names, value),) if hint]
    needs = ", ".join(keys.split("|")[0] for keys in near.slots.values())
    if not near.keys(value) and not spelt:
        raise MalformedRow(f"its keys are no known form of preferences: {seen}.",
                     'Pairs need "prompt", "chosen" and "rejected".', "row.unknown")  # fmt: skip
    raise MalformedRow(f"{missing} is missing; keys seen: {seen}.",
                 " ".join([*spelt, f"Nearest known form: {near.name} ({needs})."]), "row.missing")  # fmt: skip


def _similarity(dialect: Format, value: Mapping[str, object]) -> tuple[int, float]:
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

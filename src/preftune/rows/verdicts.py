"""Rows in which a verdict stands beside the responses: who won, which of a list was chosen, how each is labelled.

A verdict is never guessed: what names none of the responses is an error, and a tie prefers neither side.
Held by tests/rows/test_verdicts.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec.structs import replace

from preftune.rows import build, ranked
from preftune.rows.keys import is_nothing
from preftune.rows.messages import align, parse_turns
from preftune.rows.parse import (
    MalformedRow,
    SkippedRow,
    describe,
    hole,
    parse_label,
    parse_list,
    parse_number,
    parse_text,
)
from preftune.rows.raw_row import RawRow
from preftune.rows.row import Pair, Prompt, Row

BETTER, FIRST = "winner|preference|label|better_response_id|safer_response_id", "label|labels"
SIGN = "preference_strength|overall_preference"
EVEN = frozenset({*build.TIES, "both", "bothbad", "neither", "equal"})
SIDE = frozenset({"model", "response", "output", "answer", "completion", "assistant", "conversation", "summary"})
POST = {"subreddit": "SUBREDDIT: r/", "title": "TITLE: ", "post": "POST: ", "article": "ARTICLE: "}
LABELS = ("preferred", "non-preferred")


def compared(raw: RawRow) -> Row:
    """A pair of two responses with a verdict: the name of the better one, whether the first is better, or a number that
    is negative where the first is better and whose size is the margin.
    """
    slot = next(slot for slot in ("better", "first", "sign") if slot in raw.keys)
    key, value, margin = raw.keys[slot], raw[slot], 0.0
    if value == "":
        raise hole(key, "empty")
    names = dict.fromkeys(f"{BETTER}|{FIRST}|{SIGN}|preferred".split("|"))
    if other := next((name for name in names if name != key and raw.value.get(name) not in (None, "")), ""):
        hint = f'Leave one of them out: data.columns={{"{other}": ""}}, or {{"{key}": ""}}.'
        raise MalformedRow(f'"{key}" and "{other}" both say which response is better.', hint, "key.meaning")
    if slot == "better":
        first = _is_first(value, key, raw.keys["a"], raw.keys["b"])
    elif slot == "first":
        first = parse_label(value, key)
    else:
        margin = parse_number(value, key)
        first = margin < 0 if margin else None
    raw.keys["chosen"], raw.keys["rejected"] = (raw.keys[side] for side in ("ba" if first is False else "ab"))
    row = build.pair(raw) if "prompt" in raw.keys else build.pair_with_prompt_inside(raw)
    if not isinstance(row, Pair):
        raise MalformedRow(f'"{raw.keys["a"]}" or "{raw.keys["b"]}" is a list of several texts, needs one response.')
    if first is not None and "tie" in raw.keys:
        raise SkippedRow(
            "verdict.doubt", f'"{key}" names the better response, but "{raw.keys["tie"]}" says that there is none.'
        )
    if slot == "sign" and row.scores is None:
        raw.scale, row = key, replace(row, scores=(abs(margin) / 2, -abs(margin) / 2))
    return replace(row, preferred=0.5 if first is None else 1.0)


def _is_first(value: object, key: str, *sides: str) -> bool | None:
    """Whether the first side is the better one, as `model_a`, `A>B` or, beside response_0, 0 say it; None for a tie."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).lower() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    text = text.removesuffix(".0")  # so a table of pandas writes a whole number where others are missing
    words = re.sub(r"[_()]", " ", text).split()
    if words and words[0] in EVEN and {*words[1:]} <= EVEN | {"bad", "good"}:
        return None
    left, sign, right = re.split(r"(>+|<+|=+)", text) if len(re.findall(r">+|<+|=+", text)) == 1 else (text, "", "")
    named = [_side(part, sides) for part in ([left, right] if sign else [left])]
    if None not in named and len({*named}) == len(named):
        return None if "=" in sign else (named[0] == 0) == ("<" not in sign)
    message = f'"{key}" is {describe(value)}, which names neither "{sides[0]}" nor "{sides[1]}".'
    raise MalformedRow(message, "It is named by its key or the end of it; a tie is called so.")


def _side(text: str, sides: tuple[str, ...]) -> int | None:
    """Which side a text names: by its whole key or by the end of it, perhaps after such a word as `model`."""
    words = text.replace("_", " ").split()
    for index, side in enumerate(sides):
        if text.strip() == side.lower() or (words[-1:] == [side[-1].lower()] and {*words[:-1]} <= SIDE):
            return index
    return None


def choice(raw: RawRow) -> Row:
    """Summaries of a post beside the index of the better one, as OpenAI published them (arXiv 2009.01325).

    The prompt is the post with its heads as in arXiv 2403.17031, and a summary goes on from `TL;DR:`.
    """
    key, items, info = raw.keys["choice"], ranked.objects_of(raw), raw["prompt"]
    index = parse_number(raw["choice"], key)
    if index not in range(len(items)):
        raise MalformedRow(f'"{key}" is {describe(raw["choice"])}, and there are {len(items)} summaries, from 0 on.')
    if not isinstance(info, Mapping):
        raise MalformedRow(f'"{raw.keys["prompt"]}" is {describe(info)}, needs an object with a post.')
    raw.unread.add(info, raw.keys["prompt"], [*POST])
    heads = [
        head + parse_text(info[name], f"info.{name}") for name, head in POST.items() if not is_nothing(info.get(name))
    ]
    if is_nothing(info.get("post")) and is_nothing(info.get("article")):
        raise hole("info.post", "missing or empty")
    summaries = [ranked.answer_of(raw, number, item, ()) for number, item in enumerate(items)]
    prompt, aligned = align(raw.with_system("\n\n".join([*heads, "TL;DR:"])), summaries)
    return ranked.as_pair(ranked.ranking_of(raw, prompt, aligned, [float(k != index) for k in range(len(items))], None))


def conversation(raw: RawRow) -> Row:
    """A whole conversation; its last turn is the response, or holds two labelled candidates, as on Amazon Bedrock."""
    value = raw["turns"]
    messages: list[object] = value if isinstance(value, list) else []
    last = messages[-1] if messages else None
    if not isinstance(last, Mapping) or last.get("candidates") is None:
        return build.conversation(raw)
    name = f"{raw.keys['turns']}[{len(messages) - 1}]"
    raw.unread.add(last, name, ("role", "candidates"))
    if not is_nothing(last.get("content")):
        raise MalformedRow(f"{name} has both a content and candidates.", "Keep one of them.")
    if other := next((key for key in (*build.SCORES, "token_weights") if raw.value.get(key) is not None), ""):
        raise MalformedRow(f'"{other}" is of one response, and {name} has several.', "Leave it out.")
    sides: dict[str, list[Prompt]] = {label: [] for label in LABELS}
    for index, candidate in enumerate(parse_list(last["candidates"], f"{name}.candidates")):
        field = f"{name}.candidates[{index}]"
        if not isinstance(candidate, Mapping):
            raise MalformedRow(f"{field} is {describe(candidate)}, needs an object.")
        message = {"role": last.get("role"), **candidate}
        if (label := message.pop("preferenceLabel", None)) is None:
            raise hole(f"{field}.preferenceLabel", "missing or null")
        if label not in LABELS:
            raise MalformedRow(f"{field}.preferenceLabel is {describe(label)}.", f"Known: {', '.join(LABELS)}.")
        sides[str(label)].append(parse_turns(message, field, raw.unread))
    if [len(side) for side in sides.values()] != [1, 1]:
        raise SkippedRow("candidates.labels", "there is not one candidate preferred and one not.")
    prompt = parse_turns(messages[:-1], raw.keys["turns"], raw.unread)
    prompt, (chosen, rejected) = align(raw.with_system(prompt), [side[0] for side in sides.values()])
    return build.pair_of(raw, prompt, chosen, rejected)

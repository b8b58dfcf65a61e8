"""From a raw row to a row: one function for each way in which a record holds what was judged.

Each raises MalformedRow or SkippedRow; the id and the weight of the row are filled in by `Format.read`.
"""

from __future__ import annotations

import re

from msgspec.structs import replace

from preftune.rows import transcripts
from preftune.rows.keys import ABOUT, JUDGEMENT, may_be_response, words_of
from preftune.rows.messages import align, first_difference, is_texts, part, split_first_turn, whole_conversation
from preftune.rows.parse import MalformedRow, SkippedRow, hole, parse_count, parse_label, parse_number, parse_text
from preftune.rows.ranked import ranking_of
from preftune.rows.raw_row import RawRow
from preftune.rows.row import ASKING, Demo, Message, Pair, Prompt, Rating, Response, Row, Task
from preftune.rows.tools import as_json, calls

SCORES = ("score", "reward", "rating")  # of one response
SCORES_OF_PAIR = ("score_chosen", "score_rejected")
SCORE_WORDS = frozenset({"score", "rating", "reward"})
TIES = ("tie", "tied", "draw")


def pair(raw: RawRow) -> Row:
    """A prompt beside the chosen and the rejected response; a ranking where one of them is a list of several texts."""
    sides = [raw["chosen"], raw["rejected"]]
    if not any(map(is_texts, sides)):
        prompt, (chosen, rejected) = raw.align([raw.turns("chosen"), raw.turns("rejected")])
        return pair_of(raw, prompt, chosen, rejected)
    listed = [side if isinstance(side, list) else [side] for side in sides]
    better, worse = ([parse_text(entry, raw.keys[slot]) for entry in side]
                     for slot, side in zip(("chosen", "rejected"), listed, strict=True))  # fmt: skip
    if len(better) == len(worse) == 1:
        prompt, (chosen, rejected) = raw.align([*better, *worse])
        return pair_of(raw, prompt, chosen, rejected)
    if not better or not worse:
        raise hole(raw.keys["rejected" if better else "chosen"], "an empty list")
    return ranking_of(raw, *raw.align([*better, *worse]), [1.0] * len(better) + [2.0] * len(worse), None)


def pair_with_prompt_inside(raw: RawRow) -> Row:
    """Two whole conversations that part at a turn of the assistant; of the second, its last turn may stand for it."""
    sides = raw.turns("chosen"), raw.turns("rejected")
    if not isinstance(sides[0], str) and (isinstance(sides[1], str) or len(sides[1]) == 1):
        *prompt, chosen = whole_conversation(sides[0])
        prompt, aligned = align(raw.with_system(tuple(prompt)), [(chosen,), sides[1]])
        return pair_of(raw, prompt, *aligned)
    texts = [side for side in sides if isinstance(side, str)]
    if not all(map(transcripts.is_transcript, texts)):
        if any(map(transcripts.is_transcript, texts)):
            raise SkippedRow("turn.first", "one side is a transcript that begins with a human turn, the other is not.")
        hint = 'Text under "chosen" and "rejected" needs its prompt, unless both are Human/Assistant transcripts.'
        raise MalformedRow('"prompt" is missing.', hint, "row.missing")
    if sides[0] == sides[1]:
        raise SkippedRow("pair.identical", "chosen and rejected are the same.")
    chosen, rejected = map(whole_conversation, sides)
    place = part(chosen, rejected)
    if not place:
        turn = first_difference(chosen, rejected)
        raise SkippedRow("prompt.differs", f"chosen and rejected have different prompts: they part at turn {turn}.")
    return pair_of(raw, raw.with_system(chosen[:place]), chosen[place:], rejected[place:])


def pair_of(raw: RawRow, prompt: Prompt, chosen: Response, rejected: Response) -> Pair:
    preferred = raw.optional_number("preferred")
    if preferred is not None and not 0 <= preferred <= 1:
        raise MalformedRow(f'"preferred" is {preferred:g}, needs a share between 0 and 1.')
    weights = raw.token_weights((chosen, rejected), "chosen_token_weights", "rejected_token_weights")
    scores = _pair_scores(raw)
    if preferred is None:
        preferred = 0.5 if _is_tie(raw, scores) else 1.0
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected, place=raw.place, scores=scores, preferred=preferred,
                token_weights=weights)  # fmt: skip


def _is_tie(raw: RawRow, scores: tuple[float, float] | None) -> bool:
    """Whether the row says that neither response is better: by equal scores, or in a word."""
    if raw.scale != "margin" and scores is not None:
        return scores[0] == scores[1]
    for key, value in raw.value.items():
        in_words = isinstance(value, str) and value.strip().lower().partition(" ")[0] in TIES
        numbers = value if isinstance(value, list) and words_of(key) & JUDGEMENT else []
        equal = len(numbers) == 2 and numbers[0] == numbers[1] and isinstance(numbers[0], int | float)
        if key not in raw.keys.values() and (in_words or equal):
            raw.keys["tie"] = key
            return True
    return False


def _pair_scores(raw: RawRow) -> tuple[float, float] | None:
    """Both scores, under keys that differ in `chosen` and `rejected` alone, as score_chosen and score_rejected do, or
    as the keys of two compared responses do, such as reward_A and reward_B.

    A margin without scores puts one half of itself above 0 and the other half below.
    """
    margin, sides = raw.optional_number("margin"), {}
    for key, value in raw.value.items():
        other = key.replace("chosen", "rejected")
        if "a" in raw.keys:
            chosen, rejected = (raw.keys[side][-1] for side in ("chosen", "rejected"))
            other = re.sub(f"(?<![a-zA-Z0-9]){chosen}(?![a-zA-Z0-9])", rejected, key)
        is_score = words_of(key) & SCORE_WORDS and not words_of(key) & ABOUT
        if other != key and is_score and value is not None and raw.value.get(other) is not None:
            sides[key] = other
    if not sides:
        raw.scale = "" if margin is None else "margin"
        return None if margin is None else (margin / 2, -margin / 2)
    raw.scale = min(sides, key=lambda key: "score" not in key)
    names = raw.scale, sides[raw.scale]
    raw.keys |= {"score": names[0], "other score": names[1]}
    chosen, rejected = (parse_number(raw.value[name], name) for name in names)
    if margin is not None and abs(chosen - rejected - margin) > 1e-6 * max(1.0, abs(margin)):
        difference = f'"{names[0]}" minus "{names[1]}" is {chosen - rejected:g}'
        raise MalformedRow(f'"margin" is {margin:g}, but {difference}.', "Leave one of the two out.")
    return chosen, rejected


def votes(raw: RawRow) -> Row:
    """A pair: the response with more votes is chosen, and a vote for a tie counts half for each side."""
    prompt, (a, b) = raw.align([raw.turns("a"), raw.turns("b")])
    for_a, for_b, for_tie = (parse_count(raw.value.get(key) or 0, key) for key in ("votes_a", "votes_b", "votes_equal"))
    if for_a + for_b + for_tie == 0:
        raise SkippedRow("votes.none", "nobody voted.")
    preferred = (for_a + for_tie / 2) / (for_a + for_b + for_tie)
    weights = raw.token_weights((a, b), "token_weights_a", "token_weights_b")
    if preferred < 0.5:
        a, b, preferred, weights = b, a, 1 - preferred, weights and weights[::-1]
    return Pair(prompt=prompt, chosen=a, rejected=b, place=raw.place, preferred=preferred, token_weights=weights)


def called(raw: RawRow) -> Row:
    """A question beside tools and the calls that answer it, as Salesforce published them (xLAM, arXiv 2409.03215)."""
    beside = as_json({"tool_calls": calls(raw["calls"], raw.keys["calls"])})
    prompt, (response,) = raw.align([(Message("assistant", "", beside=beside),)])
    return Demo(prompt=prompt, response=response, place=raw.place)


def single(raw: RawRow) -> Row:
    """A prompt beside one response."""
    prompt, (response,) = raw.align([raw.turns("response")])
    row = _rating_or_demo(raw, prompt, response)
    if "history" in raw.keys and isinstance(row, Demo) and not row.token_weights:  # its answers are learned from too
        assert not isinstance(prompt, str)
        assert not isinstance(response, str)
        prompt, response = split_first_turn((*prompt, *response))
        return replace(row, prompt=prompt, response=response)
    return row


def conversation(raw: RawRow) -> Row:
    """A whole conversation. What is judged or weighed in it is its last turn; else it is learned from as a whole. One
    that ends with a question is a task."""
    turns = raw.turns("turns")
    if isinstance(turns, str):
        raise MalformedRow(f'"{raw.keys["turns"]}" is a text, needs a list of messages.')
    of_last = "label" in raw.keys or any(raw.value.get(key) is not None for key in (*SCORES, "token_weights"))
    others = {*raw.value} - {*raw.keys.values()}
    if turns[-1].role in ASKING and not of_last and not any(map(may_be_response, others)):
        return Task(prompt=raw.with_system(turns), place=raw.place)
    turns = whole_conversation(turns)
    prompt, response = (turns[:-1], turns[-1:]) if of_last else split_first_turn(turns)
    return _rating_or_demo(raw, raw.with_system(prompt), response)


def task(raw: RawRow) -> Row:
    """A prompt without a response. Raises SkippedRow where its answer is blank."""
    if "answer" in raw.keys and raw.answer is None:
        raise hole(raw.keys["answer"], "blank")
    prompt, _ = raw.align([])
    return Task(prompt=prompt, place=raw.place)


def text(raw: RawRow) -> Row:
    """Text to imitate from its first token on; a conversation that is written as text is read as one."""
    written = raw.turns("text")
    if not isinstance(written, str) or transcripts.is_transcript(written):
        prompt, response = split_first_turn(whole_conversation(written))
        return Demo(prompt=raw.with_system(prompt), response=response, place=raw.place)
    if raw.with_system(""):
        raise MalformedRow("a system text needs a conversation, and the row is text.", "Make it messages.")
    return Demo(prompt="", response=written, rendered=True, place=raw.place)


def _rating_or_demo(raw: RawRow, prompt: Prompt, response: Response) -> Row:
    """A rating where there is a label or a score, a demo otherwise."""
    good = parse_label(raw["label"], raw.keys["label"]) if "label" in raw.keys else None
    weights = raw.token_weights((response,), "token_weights")
    raw.scale = next((key for key in SCORES if raw.value.get(key) is not None), "")
    score = raw.optional_number(raw.scale) if raw.scale else None
    if good is None and score is None:
        return Demo(prompt=prompt, response=response, place=raw.place, token_weights=weights)
    return Rating(prompt=prompt, response=response, good=good, place=raw.place, score=score, token_weights=weights)

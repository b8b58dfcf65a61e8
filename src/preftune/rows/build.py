"""From a raw row to a row: one function for each way in which a record holds what was judged.

Each raises MalformedRow or SkippedRow; the id and the weight of the row are filled in by `Format.read`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from preftune.errors import nearest
from preftune.rows import transcripts
from preftune.rows.messages import align, first_difference, parse_turns, split_last_turn
from preftune.rows.parse import (
    MalformedRow,
    SkippedRow,
    describe,
    parse_count,
    parse_label,
    parse_list,
    parse_number,
    parse_text,
)
from preftune.rows.raw_row import RawRow, parse_weights
from preftune.rows.row import Demo, Message, Pair, Prompt, Ranking, Rating, Response, Row

SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
OTHER_NAMES = {"response_w": "chosen", "response_l": "rejected", "chosen_text": "chosen", "rejected_text": "rejected"}


def pair(raw: RawRow) -> Row:
    """A prompt beside the chosen and the rejected response."""
    prompt, (chosen, rejected) = align(raw.prompt(), [raw.turns("chosen"), raw.turns("rejected")])
    return _pair_of(raw, prompt, chosen, rejected)


def pair_with_prompt_inside(raw: RawRow) -> Row:
    """Two whole conversations that differ in their last turn alone."""
    sides = raw.turns("chosen"), raw.turns("rejected")
    texts = [side for side in sides if isinstance(side, str)]
    if not all(map(transcripts.is_transcript, texts)):
        if any(map(transcripts.is_transcript, texts)):
            raise SkippedRow("turn.first", "one side is a transcript that begins with a human turn, the other is not.")
        hint = 'Text under "chosen" and "rejected" needs its prompt, unless both are Human/Assistant transcripts.'
        raise MalformedRow('"prompt" is missing.', intended_key(["prompt"], raw.value) or hint, "row.missing")
    if sides[0] == sides[1]:
        raise SkippedRow("pair.identical", "chosen and rejected are the same.")
    (prompt, chosen), (other_prompt, rejected) = map(split_last_turn, sides)
    if prompt != other_prompt:
        turn = first_difference(prompt, other_prompt)
        raise SkippedRow("prompt.differs", f"chosen and rejected have different prompts: they part at turn {turn}.")
    return _pair_of(raw, prompt, chosen, rejected)


def _pair_of(raw: RawRow, prompt: Prompt, chosen: Response, rejected: Response) -> Pair:
    preferred = raw.optional_number("preferred")
    if preferred is not None and not 0 <= preferred <= 1:
        raise MalformedRow(f'"preferred" is {preferred:g}, needs a share between 0 and 1.')
    weights = raw.token_weights((chosen, rejected), "chosen_token_weights", "rejected_token_weights")
    preferred, scores = 1.0 if preferred is None else preferred, _pair_scores(raw)
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected, place=raw.place, scores=scores, preferred=preferred,
                token_weights=weights)  # fmt: skip


def _pair_scores(raw: RawRow) -> tuple[float, float] | None:
    """Both scores. A margin without scores puts one half of itself above 0 and the other half below."""
    names = next((names for names in SCORES if all(raw.value.get(name) is not None for name in names)), None)
    margin = raw.optional_number("margin")
    if names is None:
        return None if margin is None else (margin / 2, -margin / 2)
    chosen, rejected = (parse_number(raw.value[name], name) for name in names)
    if margin is not None and abs(chosen - rejected - margin) > 1e-6 * max(1.0, abs(margin)):
        difference = f'"{names[0]}" minus "{names[1]}" is {chosen - rejected:g}'
        raise MalformedRow(f'"margin" is {margin:g}, but {difference}.', "Leave one of the two out.")
    return chosen, rejected


def votes(raw: RawRow) -> Row:
    """A pair: the response with more votes is chosen, and a vote for a tie counts half for each side."""
    prompt, (a, b) = align(raw.prompt(), [raw.turns("a"), raw.turns("b")])
    for_a, for_b, for_tie = (parse_count(raw.value.get(key) or 0, key) for key in ("votes_a", "votes_b", "votes_equal"))
    if for_a + for_b + for_tie == 0:
        raise SkippedRow("votes.none", "nobody voted.")
    preferred = (for_a + for_tie / 2) / (for_a + for_b + for_tie)
    weights = raw.token_weights((a, b), "token_weights_a", "token_weights_b")
    if preferred < 0.5:
        a, b, preferred, weights = b, a, 1 - preferred, weights and weights[::-1]
    return Pair(prompt=prompt, chosen=a, rejected=b, place=raw.place, preferred=preferred, token_weights=weights)


def ranked(raw: RawRow) -> Row:
    """Responses beside a list of their ranks (1 is the best) or scores (the highest is the best)."""
    name, key = raw.keys["responses"], raw.keys["order"]
    responses = [
        parse_turns(value, f"{name}[{index}]") for index, value in enumerate(parse_list(raw["responses"], name))
    ]
    order = _numbers(raw["order"], key, len(responses))
    more = raw.value.get("scores")
    scores = _numbers(more, "scores", len(responses)) if more else None
    if key in ("ranks", "rank"):
        return _ranking(raw, responses, order, scores)
    return _ranking(raw, responses, [-score for score in order], order if key == "rewards" else scores)


def _numbers(value: object, key: str, count: int) -> list[float]:
    numbers = [parse_number(entry, f"{key}[{index}]") for index, entry in enumerate(parse_list(value, key))]
    if len(numbers) != count:
        raise MalformedRow(f'"{key}" has {len(numbers)} entries for {count} responses.')
    return numbers


def ranked_objects(raw: RawRow) -> Row:
    """Objects that hold a response with its rank or score, as in UltraFeedback and Nectar.

    UltraFeedback's overall score of 10 is at times a misread 1, so the mean of its four aspects takes precedence.
    """
    grades = ("rank", "fine-grained_score", "overall_score", "score", "rating")
    responses, order, scores, weights = [], [], [], []
    for index, item in enumerate(parse_list(raw["items"], raw.keys["items"])):
        field = f"{raw.keys['items']}[{index}]"
        if not isinstance(item, dict):
            raise MalformedRow(f"{field} is {describe(item)}, needs an object with a response and its score.")
        grade = next((key for key in grades if item.get(key) is not None), None)
        if grade is None:
            raise MalformedRow(f"{field} has neither rank nor score.", f"Seen: {', '.join(item)}.", "row.missing")
        key = next((key for key in ("response", "answer", "text", "content") if key in item), "response")
        responses.append(parse_text(item.get(key), f"{field}.{key}"))
        weights.append((item.get("token_weights"), f"{field}.token_weights"))
        number = parse_number(item[grade], f"{field}.{grade}")
        order.append(number if grade == "rank" else -number)
        if grade != "rank":
            scores.append(number)
    row = _ranking(raw, responses, order, scores if len(scores) == len(responses) else None)
    return replace(row, token_weights=parse_weights(weights, row.responses))


def _ranking(raw: RawRow, responses: Sequence[Prompt], order: list[float], scores: list[float] | None) -> Ranking:
    """order: any numbers of which the smallest is the best; they become 1, 2, ... with ties kept."""
    prompt, aligned = align(raw.prompt(), responses)
    rank_of = {number: rank for rank, number in enumerate(sorted(set(order)), 1)}
    ranks, weights = tuple(rank_of[number] for number in order), raw.listed_token_weights(aligned)
    return Ranking(prompt=prompt, responses=aligned, ranks=ranks, place=raw.place,
                   scores=None if scores is None else tuple(scores), token_weights=weights)  # fmt: skip


def single(raw: RawRow) -> Row:
    """A prompt beside one response."""
    prompt, (response,) = align(raw.prompt(), [raw.turns("response")])
    return _rating_or_demo(raw, prompt, response)


def conversation(raw: RawRow) -> Row:
    """A whole conversation; its last turn is the response."""
    turns = raw.turns("turns")
    if isinstance(turns, str):
        raise MalformedRow(f'"{raw.keys["turns"]}" is a text, needs a list of messages.')
    system = raw.value.get("system")
    if system and turns[0].role != "system":
        turns = (Message("system", parse_text(system, "system")), *turns)
    return _rating_or_demo(raw, *split_last_turn(turns))


def _rating_or_demo(raw: RawRow, prompt: Prompt, response: Response) -> Row:
    """A rating where there is a label or a score, a demo otherwise."""
    good = parse_label(raw["label"], raw.keys["label"]) if "label" in raw.keys else None
    score, weights = raw.optional_number("score"), raw.token_weights((response,), "token_weights")
    if good is None and score is None:
        return Demo(prompt=prompt, response=response, place=raw.place, token_weights=weights)
    return Rating(prompt=prompt, response=response, good=good, place=raw.place, score=score, token_weights=weights)


def intended_key(names: Sequence[str], value: Mapping[str, object]) -> str:
    """`Did you mean "chosen" by "choosen"?` where a key of the record is nearly one of `names`, else nothing."""
    for key in map(str, value):
        if OTHER_NAMES.get(key) in names:
            return f'Did you mean "{OTHER_NAMES[key]}" by "{key}"?'
        if key not in names and (hint := nearest(key, names)):
            return hint.replace("?", f' by "{key}"?')
    return ""

"""Rows of several responses to one prompt, each with its rank or score."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from preftune.rows.keys import RESPONSE_KEYS
from preftune.rows.messages import parse_turns
from preftune.rows.parse import MalformedRow, SkippedRow, describe, hole, parse_list, parse_number
from preftune.rows.raw_row import RawRow, parse_weights
from preftune.rows.row import Pair, Prompt, Ranking, Response, Row

GRADES = ("rank", "fine-grained_score", "overall_score", "score", "rating")


def ranked(raw: RawRow) -> Row:
    """Responses beside a list of their ranks (1 is the best) or scores (the highest is the best)."""
    name, key = raw.keys["responses"], raw.keys["order"]
    responses, order = parse_list(raw["responses"], name), parse_list(raw["order"], key)
    more = order if key in ("rewards", "ratings") else raw.value.get("scores") or [None] * len(responses)
    columns = [(key, order), ("scores", parse_list(more, "scores"))]
    for column, entries in columns:
        if len(entries) != len(responses):
            raise MalformedRow(f'"{column}" has {len(entries)} entries for {len(responses)} responses.')
    judged = [index for index, entry in enumerate(order) if entry is not None]  # nobody judged the others
    turns = [parse_turns(responses[index], f"{name}[{index}]", raw.unread) for index in judged]
    numbers, scores = (
        [parse_number(entries[index], f"{column}[{index}]") for index in judged if entries[index] is not None]
        for column, entries in columns
    )
    raw.scale = key if key in ("rewards", "ratings") else "scores" if scores else ""
    ordered = numbers if key in ("ranks", "rank") else [-number for number in numbers]
    return ranking_of(raw, *raw.align(turns), ordered, scores if len(scores) == len(judged) else None)


def ranked_objects(raw: RawRow) -> Ranking:
    """Objects that hold a response with its rank or score, as in UltraFeedback and Nectar, by a key that all have.

    UltraFeedback's overall score of 10 is at times a misread 1, so the mean of its four aspects takes precedence.
    """
    name, items = raw.keys["items"], objects_of(raw)
    numbers = [{key for key in GRADES if item.get(key) is not None} for item in items]
    if not any(numbers):
        raise MalformedRow(f"{name}[0] has neither rank nor score.", f"Seen: {', '.join(items[0])}.", "row.missing")
    graded = [index for index, keys in enumerate(numbers) if keys]  # nobody judged the others
    grade = next((key for key in GRADES if all(key in numbers[index] for index in graded)), None)
    if grade is None:
        raise SkippedRow("ranking.scales", "no rank or score is given for all responses, so they cannot be compared.")
    order = [parse_number(items[index][grade], f"{name}[{index}].{grade}") for index in graded]
    scores = None if grade == "rank" else order
    raw.scale = "" if scores is None else grade
    prompt, aligned = raw.align([answer_of(raw, index, items[index], (grade, "token_weights")) for index in graded])
    row = ranking_of(raw, prompt, aligned, order if scores is None else [-score for score in order], scores)
    weights = [(items[index].get("token_weights"), f"{name}[{index}].token_weights") for index in graded]
    return replace(row, token_weights=parse_weights(weights, row.responses))


def objects_of(raw: RawRow) -> list[dict[str, object]]:
    """The list of objects, each with a response."""
    name, items = raw.keys["items"], []
    for index, item in enumerate(parse_list(raw["items"], name)):
        if not isinstance(item, dict):
            raise MalformedRow(f"{name}[{index}] is {describe(item)}, needs an object with a response and its score.")
        items.append(item)
    return items


def answer_of(raw: RawRow, index: int, item: dict[str, object], read: Sequence[str]) -> Prompt:
    """The response of object `index` of the list. read: the keys beside it that are read."""
    field = f"{raw.keys['items']}[{index}]"
    keys = [key for key in RESPONSE_KEYS if item.get(key) is not None]
    if not keys:
        raise hole(f"{field}.response", "missing or null")
    if any(item[key] != item[keys[0]] for key in keys):
        raise MalformedRow(f"{field} has several responses: {', '.join(keys)}.", "Keep one of them.")
    raw.unread.add(item, field, (*keys, *read))
    return parse_turns(item[keys[0]], f"{field}.{keys[0]}", raw.unread)


def ranking_of(
    raw: RawRow, prompt: Prompt, aligned: tuple[Response, ...], order: list[float], scores: list[float] | None
) -> Ranking:
    """order: any numbers of which the smallest is the best; they become 1, 2, ... with ties kept."""
    rank_of = {number: rank for rank, number in enumerate(sorted(set(order)), 1)}
    ranks, weights = tuple(rank_of[number] for number in order), raw.listed_token_weights(aligned)
    return Ranking(prompt=prompt, responses=aligned, ranks=ranks, place=raw.place,
                   scores=None if scores is None else tuple(scores), token_weights=weights)  # fmt: skip


def as_pair(row: Ranking) -> Ranking | Pair:
    """A ranking of two responses as the pair that it is."""
    if len(row.responses) != 2:
        return row
    better, worse = (0, 1) if row.ranks[0] <= row.ranks[1] else (1, 0)
    return Pair(
        prompt=row.prompt, place=row.place, chosen=row.responses[better], rejected=row.responses[worse],
        preferred=0.5 if row.ranks[0] == row.ranks[1] else 1.0,
        scores=None if row.scores is None else (row.scores[better], row.scores[worse]),
        token_weights=None if row.token_weights is None else (row.token_weights[better], row.token_weights[worse]),
    )  # fmt: skip

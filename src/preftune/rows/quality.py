"""What is wrong or odd about rows of the right shape: some are skipped, others are kept with a note."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby, pairwise
from operator import itemgetter

from preftune.errors import Problem
from preftune.rows.account import Tally
from preftune.rows.parse import SkippedRow
from preftune.rows.row import (
    Demo,
    Pair,
    Place,
    Ranking,
    Rating,
    Row,
    Task,
    last_text,
    responses,
    text_of,
    turns_of,
    with_thoughts,
)

UNSEEN = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u180e"
INVISIBLE = dict.fromkeys(map(ord, UNSEEN))
VISIBLE, HIDDEN = re.compile(rf"[^\s{UNSEEN}]"), re.compile(f"[{UNSEEN}]")
BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
HEADERS = ("\n\nHuman:", "\n\nAssistant:", "Assistant:", "Human:", "<|im_start|>", "<|start_header_id|>", "[INST]")


def is_blank(text: str) -> bool:
    """Whether a reader sees nothing of the text."""
    return VISIBLE.search(text) is None


def _look_equal(text: str, other: str) -> bool:
    """Whether no reader sees a difference; most texts need no folding for their words to be compared."""
    plain = all(map(_is_plain, (text, other)))
    return not (plain and text.split() != other.split()) and _folded(text) == _folded(other)


def _is_plain(text: str) -> bool:
    return text.isascii() or (HIDDEN.search(text) is None and unicodedata.is_normalized("NFC", text))


def _folded(text: str) -> str:
    """The text without differences that no reader sees: spaces inside of lines, invisible characters, composition.

    Line breaks and indentation are seen, and in code they mean something.
    """
    lines = unicodedata.normalize("NFC", text.translate(INVISIBLE)).strip().splitlines()
    indents = [line[: len(line) - len(line.lstrip())] for line in lines]
    return "\n".join(indent + " ".join(line.split()) for indent, line in zip(indents, lines, strict=True))


def check(row: Row) -> None:
    """Raise SkippedRow where the row teaches nothing."""
    if any(0 not in turns_of(response) for response in responses(row)):
        raise SkippedRow("response.weight", "a response has the weight 0.")
    texts = [text_of(response) for response in responses(row)]
    if any(map(is_blank, texts)):
        raise SkippedRow("response.empty", "a response is empty.")
    for name, turns in (("the prompt", row.prompt), *(("a response", response) for response in responses(row))):
        for number, turn in enumerate(turns if isinstance(turns, tuple) else (), 1):
            if turn.role in ("user", "assistant") and is_blank(turn.says):
                raise SkippedRow("turn.empty", f"turn {number} of {name} is empty.")
    said = [with_thoughts(response) for response in responses(row)]
    if isinstance(row, Pair):
        if said[0] == said[1]:
            raise SkippedRow("pair.identical", "chosen and rejected are the same.")
        if _look_equal(*said):
            raise SkippedRow("pair.equal_after_folding", "chosen and rejected differ only in what no reader sees.")
    if isinstance(row, Ranking):
        if len(said) < 2:
            raise SkippedRow("ranking.short", "a ranking needs two responses or more.")
        if len(set(row.ranks)) < 2:
            raise SkippedRow("ranking.tied", "all responses are tied.")
        if len(set(zip(said, row.ranks, strict=True))) > len(set(said)):
            raise SkippedRow("ranking.identical", "the same response has two ranks.")


def remarks(rows: Sequence[Row]) -> list[Problem]:
    """What is odd about rows that are kept: one note for each reason."""
    tally = Tally()
    first_places: dict[tuple[object, ...], Place] = {}
    ids: dict[str, Place] = {}
    for row in rows:
        sides = responses(row)
        if row.id and ids.setdefault(row.id, row.place) is not row.place:
            tally.add("id.repeated", "an earlier row has the same id", row.place)
        label = row.good if isinstance(row, Rating) else row.ranks if isinstance(row, Ranking) else None
        label = row.answer if isinstance(row, Task) else label
        if first_places.setdefault((row.prompt, sides, label), row.place) is not row.place:
            tally.add("row.duplicate", "the row repeats an earlier one", row.place)
        if isinstance(row, Pair) and (row.prompt, sides[::-1], None) in first_places:
            tally.add("pair.contradiction", "the pair prefers the response that another pair rejects", row.place)
        if isinstance(row, Rating) and row.good is not None and (row.prompt, sides, not row.good) in first_places:
            tally.add("rating.contradiction", "the rating is the opposite of another", row.place)
        if isinstance(row, Pair) and row.scores and row.scores[0] < row.scores[1]:
            tally.add("pair.scores", "rejected has the higher score", row.place)
        if isinstance(row, Ranking) and row.scores and _contradicts(row.ranks, row.scores):
            tally.add("ranking.scores", "a response of a worse rank has a higher score", row.place)
        if isinstance(row, Pair) and row.preferred == 0.5:
            tally.add("pair.tied", "neither response is judged better, so each is preferred by half", row.place)
        _remark_on_text(row, tally)
    labels = {row.good for row in rows if isinstance(row, Rating) and row.good is not None}
    if len(labels) == 1 and len(rows) > 1:
        label = "good" if labels.pop() else "bad"
        tally.add("rating.one_class", f"from here on all ratings are {label}", rows[0].place)
    return tally.problems()


def _contradicts(ranks: Sequence[int], scores: Sequence[float]) -> bool:
    """Whether a response of a worse rank has a higher score than a better one; equal ranks or scores say nothing."""
    lowest = math.inf  # score of a better rank
    by_rank = groupby(sorted(zip(ranks, scores, strict=True)), key=itemgetter(0))
    for _, equals in by_rank:
        of_rank = [score for _, score in equals]
        if max(of_rank) > lowest:
            return True
        lowest = min(lowest, *of_rank)
    return False


def _remark_on_text(row: Row, tally: Tally) -> None:
    prompt = last_text(row.prompt)
    if is_blank(prompt) and not (isinstance(row, Demo) and row.rendered):
        tally.add("prompt.empty", "the prompt is empty", row.place)
    before = () if isinstance(row.prompt, str) else row.prompt
    if isinstance(row, Demo) and any(turn.role == "assistant" for turn in before):
        tally.add("demo.turns", "turns of the assistant in the prompt are not learned from", row.place)
    if any(len(turns_of(response)) > 1 for response in responses(row)):
        message = "a response has several turns of the assistant; each is learned from, what stands between them is not"
        tally.add("response.turns", message, row.place)
    speaking = [[*before, *side] for side in responses(row) if isinstance(side, tuple)] or [[*before]]
    if any(turn.role == following.role != "tool" for turns in speaking for turn, following in pairwise(turns)):
        tally.add("turn.order", "one speaker has two turns in a row", row.place)
    texts = [text_of(response) for response in responses(row)]
    if len(prompt) > 20 and any(text.lstrip().startswith(prompt) for text in texts):
        tally.add("response.repeats_prompt", "a response repeats the prompt", row.place)
    if any(text.startswith(HEADERS) for text in texts):
        tally.add("response.header", "a response begins with the name of a speaker", row.place)
    for text in (prompt, *texts):
        if "\0" in text:
            tally.add("text.nul", "the text holds a zero character", row.place)
        if not text.isascii() and not BIDI.isdisjoint(text):
            tally.add("text.bidi", "the text holds characters that change the direction of reading", row.place)

"""Rows in which a verdict stands beside the responses, and their neighbors: swapped, tied, null, renamed, doubled."""

from __future__ import annotations

from typing import Any

import pytest

from preftune.errors import UserError
from preftune.rows.read import Reading, read
from preftune.rows.row import Pair, Prompt, Ranking, text_of

Record = dict[str, Any]


def turns(*contents: str) -> list[Record]:
    return [{"role": ("user", "assistant")[k % 2], "content": content} for k, content in enumerate(contents)]


def parts(*contents: str) -> list[Record]:
    typed = [[{"type": "text", "text": content, "image": None, "mimeType": None}] for content in contents]
    return [message | {"content": part} for message, part in zip(turns(*contents), typed, strict=True)]


def candidates(*labels: object) -> Record:
    listed = [{"content": [{"text": text}], "preferenceLabel": label}
              for text, label in zip(("left", "right"), labels, strict=True)]  # fmt: skip
    asked = {"role": "user", "content": [{"text": "ask"}]}
    return {"system": [{"text": "be kind"}], "messages": [asked, {"role": "assistant", "candidates": listed}]}


def nemo(*ranks: object) -> Record:
    sides = [
        {"rank": rank, "completion": turns("", text)[1:]} for rank, text in zip(ranks, ("left", "right"), strict=True)
    ]
    return {"context": turns("ask"), "completions": sides}


ARENA = {"conversation_a": turns("ask", "left"), "conversation_b": turns("ask", "right")}
ARENA_PARTS = {"conversation_a": parts("ask", "left"), "conversation_b": parts("ask", "right")}
HALOS = {"prompt": turns("ask"), "output_A": turns("", "left")[1:], "output_B": turns("", "right")[1:]}
JUDGE = {"question": "ask", "response_A": "left", "response_B": "right"}
PKU = {"prompt": "ask", "response_0": "left", "response_1": "right"}
STRENGTH = {"prompt": "ask", "response_1": "left", "response_2": "right"}
STRENGTH_3 = {"context": turns("ask"), "response1": "left", "response2": "right"}
FARM = {"instruction": "ask", "input": "", "output_1": "left", "output_2": "right"}
STACK = {"question": "ask", "response_j": "left", "response_k": "right"}
SHP = {"history": "ask", "human_ref_A": "left", "human_ref_B": "right"}
POST = {"subreddit": "own", "title": "sum", "post": "ask", "id": "t", "site": None, "article": None}
TLDR = {"info": POST, "summaries": [{"text": " left", "policy": "p"}, {"text": " right", "policy": "q"}]}
LEFT, RIGHT, TIE = ("left", "right", 1.0), ("right", "left", 1.0), ("left", "right", 0.5)

READ: list[tuple[Record, tuple[str, str, float]]] = [
    (ARENA | {"winner": "model_a"}, LEFT),
    (ARENA | {"winner": "model_b"}, RIGHT),
    (ARENA | {"winner": "tie (bothbad)"}, TIE),
    (ARENA_PARTS | {"winner": "model_b"}, RIGHT),
    (ARENA_PARTS | {"winner": "both_bad"}, TIE),
    (ARENA_PARTS | {"winner": " Tie "}, TIE),
    (HALOS | {"label": 1}, LEFT),
    (HALOS | {"label": 0}, RIGHT),
    (HALOS | {"winner": "B"}, RIGHT),
    (SHP | {"labels": 0, "upvote_ratio": 0.9}, RIGHT),
    (JUDGE | {"label": "A>B"}, LEFT),
    (JUDGE | {"label": "B>A"}, RIGHT),
    (JUDGE | {"label": "A < B"}, RIGHT),
    (JUDGE | {"label": "B>>A"}, RIGHT),
    (JUDGE | {"label": "A=B"}, TIE),
    (JUDGE | {"label": "response_B"}, RIGHT),
    (JUDGE | {"winner": "neither", "label": None}, TIE),
    (PKU | {"better_response_id": 0}, LEFT),
    (PKU | {"better_response_id": 1.0}, RIGHT),
    (PKU | {"safer_response_id": "1"}, RIGHT),
    (FARM | {"preference": 1}, LEFT),
    (FARM | {"preference": 2}, RIGHT),
    (STRENGTH | {"preference_strength": -2}, LEFT),
    (STRENGTH | {"preference_strength": "3"}, RIGHT),
    (STRENGTH | {"preference_strength": 0}, TIE),
    (STRENGTH_3 | {"overall_preference": 1}, RIGHT),
    (STACK, LEFT),
    (STACK | {"system": "be kind", "qid": 3}, LEFT),
    (nemo(0, 1), LEFT),
    (nemo(1, 0), RIGHT),
    (nemo(0, 0), TIE),
    (candidates("preferred", "non-preferred"), LEFT),
    (candidates("non-preferred", "preferred"), RIGHT),
    (TLDR | {"choice": 0}, (" left", " right", 1.0)),
    (TLDR | {"choice": 1}, (" right", " left", 1.0)),
]  # fmt: skip


@pytest.mark.parametrize(("record", "expected"), READ)
def test_what_is_chosen(record: Record, expected: tuple[str, str, float]) -> None:
    (pair,) = read([record]).rows
    assert isinstance(pair, Pair)
    assert (text_of(pair.chosen), text_of(pair.rejected), pair.preferred) == expected
    assert text_of(pair.prompt).partition("POST: ")[2] == "ask\n\nTL;DR:" if "info" in record else "ask"


def scores(record: Record) -> tuple[float, float] | None:
    (pair,) = read([record]).rows
    return pair.scores if isinstance(pair, Pair) else None


def test_scores_follow_their_sides_and_a_strength_is_the_margin() -> None:
    assert scores(HALOS | {"label": 0, "reward_A": 0.25, "reward_B": 0.75}) == (0.75, 0.25)
    assert scores(SHP | {"labels": 1, "score_A": 9, "score_B": 4, "score_ratio": 2.25}) == (9, 4)
    assert scores(ARENA | {"winner": "tie", "a_score": 1, "b_score": 2}) == (1, 2)
    assert scores(STRENGTH | {"preference_strength": -3}) == (1.5, -1.5)
    assert scores(STRENGTH | {"preference_strength": 3}) == (1.5, -1.5)


def test_the_prompt_of_a_post_has_its_heads() -> None:
    def prompt(**more: object) -> Prompt:
        return read([TLDR | {"info": POST | more, "choice": 0}]).rows[0].prompt

    assert prompt() == "SUBREDDIT: r/own\n\nTITLE: sum\n\nPOST: ask\n\nTL;DR:"
    assert prompt(title=None, post="", article="news", subreddit=None) == "ARTICLE: news\n\nTL;DR:"


def test_more_than_two_responses_are_a_ranking() -> None:
    third = nemo(2, 0)["completions"] + [{"rank": 2, "completion": turns("", "third")[1:]}]
    summaries = [*TLDR["summaries"], {"text": " third"}]
    for record, ranks in (({"context": turns("ask"), "completions": third}, (2, 1, 2)),
                          (TLDR | {"summaries": summaries, "choice": 2}, (2, 2, 1))):  # fmt: skip
        (ranking,) = read([record]).rows
        assert isinstance(ranking, Ranking)
        assert ranking.ranks == ranks


HOLES: list[tuple[Record, Record]] = [
    (ARENA | {"winner": "model_a"}, {"winner": None}),
    (ARENA | {"winner": "model_a"}, {"winner": ""}),
    (ARENA | {"winner": "model_a"}, {"conversation_b": []}),
    (HALOS | {"label": 1}, {"label": None}),
    (JUDGE | {"label": "A>B"}, {"response_B": None}),
    (PKU | {"better_response_id": 1}, {"better_response_id": None}),
    (PKU | {"better_response_id": 1}, {"response_0": []}),
    (STRENGTH | {"preference_strength": 1}, {"preference_strength": None}),
    (STRENGTH | {"preference_strength": 1}, {"response_2": None}),
    (STACK, {"response_k": None}),
    (nemo(0, 1), {"completions": []}),
    (TLDR | {"choice": 1}, {"choice": None}),
    (TLDR | {"choice": 1}, {"info": POST | {"post": None}}),
    (TLDR | {"choice": 1}, {"summaries": [{"text": None}, {"text": " right"}]}),
    (candidates("preferred", "non-preferred"), candidates("preferred", None)),
]


def reading_with(record: Record, change: Record) -> Reading:
    return read([record, record | change, record])


@pytest.mark.parametrize(("record", "hole"), HOLES)
def test_a_null_or_empty_verdict_or_side_is_one_unusable_row(record: Record, hole: Record) -> None:
    reading = reading_with(record, hole)
    assert [(problem.reason, problem.location) for problem in reading.skipped] == [("row.hole", "rows:2")]
    assert len(reading.rows) == 2


SKIPPED: list[tuple[Record, str]] = [
    (ARENA | {"winner": "model_a", "conversation_b": turns("ask", "left")}, "pair.identical"),
    (ARENA | {"winner": "model_a", "conversation_b": turns("ask", "right", "more")}, "turn.last"),
    ({"conversation_a": turns("ask", "left", "so", "x"), "conversation_b": turns("ask", "left", "then", "y"),
      "winner": "model_b"}, "prompt.differs"),
    (JUDGE | {"label": "A>B", "response_B": " left "}, "pair.equal_after_folding"),
    (PKU | {"better_response_id": 1, "response_0": " "}, "response.empty"),
    (STACK | {"response_k": "left"}, "pair.identical"),
    (JUDGE | {"label": "A>B", "status": "tie"}, "verdict.doubt"),
    (candidates("preferred", "preferred"), "candidates.labels"),
    (candidates("non-preferred", "non-preferred"), "candidates.labels"),
    ({"context": turns("ask"), "completions": nemo(0, 1)["completions"][:1]}, "ranking.short"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "reason"), SKIPPED)
def test_a_row_that_teaches_nothing_is_counted_by_its_reason(record: Record, reason: str) -> None:
    assert [problem.reason for problem in read([record]).skipped] == [reason]


REFUSED: list[tuple[Record, str]] = [
    *((ARENA | {"winner": value}, r'"winner" is .* names neither "conversation_a" nor "conversation_b"')
      for value in ("c", "not_a", "a b", "tie_breaker_a", "both a", "A>A", "A>B>A", "A>=B", "\uff21", 0, True, ["a"])),
    *((PKU | {"better_response_id": value}, "names neither") for value in (2, -1, 0.5, "-1", False, "two")),
    (FARM | {"preference": 0}, "names neither"),
    (JUDGE | {"label": 1}, "names neither"),
    (HALOS | {"label": "A>B"}, '"label" is the text .A>B., needs true or false'),
    (HALOS | {"label": 2}, "needs true or false"),
    (STRENGTH | {"preference_strength": "strong"}, "needs a finite number"),
    (STRENGTH | {"preference_strength": True}, "needs a finite number"),
    (PKU | {"better_response_id": 1, "safer_response_id": 0},
     r'"better_response_id" and "safer_response_id" both say .* data.columns=.*"safer_response_id": ""'),
    (JUDGE | {"label": "A>B", "preferred": 0.8}, "both say which response is better"),
    (HALOS | {"label": 1, "winner": "B"}, "both say which response is better"),
    (HALOS | {"label": 1, "output_C": "third"}, r'"output_C" \(another side\)'),
    (PKU | {"better_response_id": 1, "response_2": "third"}, r'"response_2" \(another side\)'),
    (JUDGE | {"label": "A>B", "image": "a.jpg"}, r'"image" \(a picture or a sound\)'),
    (JUDGE | {"label": "A>B", "context": "a page"}, r'"context" \(a part of what was asked\)'),
    (JUDGE | {"label": "A>B", "response_A": ["left", "or"]}, "is a list of several texts"),
    ({"prompt": "ask", "completion": "say", "response_k": "no"}, r'"response_k" \(another side\)'),
    ({"messages": [*turns("ask"), {"role": "assistant", "content": "x", "candidates": [{"content": "y"}]}]},
     "both a content and candidates"),
    ({"messages": [*turns("ask", "x"), {"role": "user", "content": "y", "candidates": ["z"]}, *turns("", "w")[1:]]},
     r'"messages\[\].candidates" \(another side\)'),
    (candidates("preferred", "worse"), "preferenceLabel is the text 'worse'. Known: preferred, non-preferred"),
    ({"messages": [*turns("ask"), {"role": "assistant", "candidates": "x"}]}, "needs a list"),
    ({"messages": [*turns("ask"), {"role": "assistant", "candidates": ["x", "y"]}]}, "needs an object"),
    *((TLDR | {"choice": value}, '"choice" is .*, and there are 2 summaries|needs a finite number')
      for value in (2, -1, 0.5, True, "b")),
    (TLDR | {"choice": 0, "info": "ask"}, '"info" is the text .ask., needs an object with a post'),
    (TLDR | {"choice": 0, "info": POST | {"post": 7}}, '"info.post" is a number'),
    (TLDR | {"choice": 0, "summaries": ["left", "right"]}, "needs an object"),
    (TLDR | {"choice": 0, "summaries": [{"text": "a", "token_weights": [1]}, {"text": "b"}]},
     r'"summaries\[\].token_weights" is not read'),
    (candidates("preferred", "non-preferred") | {"score": 2}, '"score" is of one response'),
    (JUDGE | {"label": "A>B", "token_weights_a": [1]}, '"token_weights_a" is not read'),
    ({"prompt": "ask", "answers": [{"answer": "a", "text": "b", "rank": 1}, {"answer": "c", "rank": 2}]},
     r"answers\[0\] has several responses: answer, text"),
    (nemo("best", 1), "needs a finite number"),
    ({"context": turns("ask"), "completions": [{"completion": turns("", "x")[1:]}]}, "has neither rank nor score"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "message"), REFUSED)
def test_what_is_refused(record: Record, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read([record])


def test_which_of_two_verdicts_counts_is_told() -> None:
    record = PKU | {"better_response_id": 1, "safer_response_id": 0}
    for left_out, expected in (("safer_response_id", "right"), ("better_response_id", "left")):
        (pair,) = read([record], columns={left_out: ""}).rows
        assert isinstance(pair, Pair)
        assert pair.chosen == expected


def test_other_names_are_mapped() -> None:
    renamed = {"ask": "ask", "first": "left", "second": "right", "verdict": "B"}
    columns = {"ask": "prompt", "first": "response_a", "second": "response_b", "verdict": "winner"}
    (pair,) = read([renamed], columns=columns).rows
    assert isinstance(pair, Pair)
    assert (pair.chosen, pair.rejected) == ("right", "left")
    with pytest.raises(UserError, match=r'Did you mean "winner" by "winer"'):
        read([JUDGE | {"winer": "A"}])


def test_every_key_that_is_not_read_is_told() -> None:
    for record in (ARENA | {"winner": "model_a", "model_a": "m", "judge": "j", "is_code": False, "moderation": {}},
                   TLDR | {"choice": 1, "worker": "w", "extra": {"confidence": 8}},
                   candidates("preferred", "non-preferred") | {"schemaVersion": "v"}):  # fmt: skip
        notes = {note.reason: note.message for note in read([record]).notes}
        used = {*ARENA, *TLDR, "winner", "choice", "system", "messages"}
        assert all(key in notes["fields.extra"] for key in {*record} - used)
    graded = nemo(0, 1)["completions"]
    assert (
        "completions[].score"
        in read([{"context": "ask", "completions": [{"score": 1} | x for x in graded]}]).notes[0].message
    )
    assert "summaries[].policy" in read([TLDR | {"choice": 1}]).notes[0].message


def test_one_form_a_file() -> None:
    with pytest.raises(UserError, match="Keep one form a file"):
        read([PKU | {"better_response_id": 1}] * 2 + [{"prompt": "ask", "chosen": "a", "rejected": "b"}])


@pytest.mark.parametrize("role", ["environment", "ipython", "function"])
def test_what_a_tool_answers_is_a_turn_of_a_tool(role: str) -> None:
    asked = [*turns("ask", "add(1, 2)"), {"role": role, "content": "3"}]
    (pair,) = read([{"chosen": [*asked, *turns("", "3")[1:]], "rejected": [*asked, *turns("", "4")[1:]]}]).rows
    assert not isinstance(pair.prompt, str)
    assert [turn.role for turn in pair.prompt] == ["user", "assistant", "tool"]

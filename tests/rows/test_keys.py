"""One account of keys for rows, messages and parts: what changes a row's meaning is read or refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import UserError
from preftune.rows.read import Reading, read
from preftune.rows.row import Demo, Message, Pair, Ranking, Rating, Row

DEMO = {"prompt": "ask", "completion": "say"}
PAIR = {"prompt": "ask", "chosen": "say", "rejected": "no"}
U, A, N = ({"role": r, "content": c} for r, c in (("user", "ask"), ("assistant", "say"), ("assistant", "no")))
CHAT = {"prompt": [U], "chosen": [A], "rejected": [N]}


def reading_of(*rows: dict[str, Any], **columns: str) -> Reading:
    return read(list(rows), columns=columns)


def row_of(row: dict[str, Any], **columns: str) -> Row:
    (only,) = reading_of(row, **columns).rows
    return only


def in_message(**more: object) -> dict[str, Any]:
    return CHAT | {"chosen": [A | more]}


REFUSED: dict[str, list[dict[str, Any]]] = {
    "another side": [
        DEMO | {"dispreferred": "no"},
        {"messages": [U, A], "worse_answer": "no"},
        DEMO | {"completion_2": "no"},
        DEMO | {"label": True, "losing_messages": [N]},
        PAIR | {"rejected_2": "never"},
    ],
    "a judgement": [
        DEMO | {"is_safe": False},
        DEMO | {"helpfulness": 0},
        DEMO | {"isCorrect": True},
        DEMO | {"thumbs": "down"},
        DEMO | {"metadata": {"annotator": {"rating": 1}}},
        DEMO | {"verbosity": 3.5},
        {"messages": [U, A], "feedback": "thumbs_down"},
        {"messages": [U, A | {"score": 1}]},
        PAIR | {"label": 0},
    ],
    "a picture or a sound": [
        PAIR | {"image": "a.jpg"},
        PAIR | {"video_url": ["a"]},
        DEMO | {"pixel_values": [1]},
        in_message(audio={"data": "x"}),
        in_message(content=[{"type": "text", "text": "say", "image": "x"}]),
    ],
    "a tool": [
        PAIR | {"tool_choice": "x"},
        PAIR | {"available_functions": "add(a, b)"},
        {
            "completions": [{"content": "say", "tool_calls": [1], "score": 1}, {"content": "no", "score": 0}],
            "prompt": "a",
        },
    ],
    "a thought": [
        DEMO | {"reasoning": "since"},
        PAIR | {"chosen_thinking": "since", "rejected_thinking": "guess"},
        DEMO | {"chain_of_thoughts": ["since"]},
        in_message(thinking_blocks=[{"x": "y"}]),
    ],
    "a part of what was asked": [
        PAIR | {"input": "this"},
        PAIR | {"context": "a page"},
        {"question": "ask", "custom_system_prompt": "be kind", "chosen": "say", "rejected": "no"},
        DEMO | {"documents": ["a", "b"]},
        {"question": "which?", "answer": 2, "choices": ["oak", "elm", "ash"]},
        {"question": "which?", "answer": "A", "options": {"A": "oak", "B": "elm"}},
        {"question": "which?", "answer": "A", "A": "oak", "B": "elm"},
    ],
}
CASES = [(kind, row) for kind, rows in REFUSED.items() for row in rows]


@pytest.mark.parametrize(("kind", "row"), CASES, ids=[f"{kind} {k}" for k, (kind, _) in enumerate(CASES)])
def test_a_key_that_changes_the_meaning_is_refused_by_name(kind: str, row: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf'rows:1: .*"[a-zA-Z_0-9.[\]]+" \({kind}\)'):
        read([row])


TOLD: list[dict[str, Any]] = [
    DEMO | {"idx": 3, "num_turns": 2, "source_model": "m", "tool": "", "images": [], "has_image": False},
    PAIR | {"chosen_model": "m", "preference_type": "delta", "prompt_id": "p", "num_correct": 1},
    PAIR | {"question": "ask", "original_rejected": "no"},  # says what the row holds
    DEMO | {"label": True, "harmlessness": 3},  # the row is judged already
    DEMO | {"": "x"},
    DEMO | {"prompt": "oak (A) or elm (B)?", "choices": {"text": ["oak", "elm"], "label": ["A", "B"]}},
    in_message(name="helper", weight=1),
    in_message(content=[{"type": "text", "text": "say", "image": None, "mime": "x"}]),
    CHAT | {"messages": [U, A]},
    PAIR | {"chosen_reward_model": "m", "rejected_reward_model": "m"},
    {
        "input": {"messages": [U], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [A],
        "non_preferred_output": [N],
    },
]


@pytest.mark.parametrize("row", TOLD)
def test_every_other_key_is_told(row: dict[str, Any]) -> None:
    reading = read([row])
    assert len(reading.rows) == 1
    note = next(note.message for note in reading.notes if note.reason == "fields.extra")
    keys = {*row} - {*PAIR, *DEMO, "label", "preferred_output", "non_preferred_output"}
    assert all(key in note for key in keys or {"chosen[]"})


def test_columns_say_what_a_key_means(tmp_path: Path) -> None:
    assert row_of(DEMO | {"is_safe": False}, is_safe="label") == row_of(DEMO | {"label": False})
    assert row_of(DEMO | {"quality": 3, "clarity": 1}, quality="score") == row_of(DEMO | {"score": 3})
    assert isinstance(row_of(DEMO | {"is_code": True}, is_code=""), Demo)
    assert row_of(DEMO | {"feedback": "thumbs_down"}, feedback="label") == row_of(DEMO | {"label": False})
    with pytest.raises(UserError, match=r"no row has the key qality of data.columns\. Seen: prompt"):
        read([DEMO], columns={"qality": "score"})


def test_a_misspelled_judgement_is_refused_with_the_key_that_was_meant() -> None:
    with pytest.raises(UserError, match=r'"lable" .a judgement. .* Did you mean "label" by "lable"'):
        read([DEMO | {"lable": 1}])


@pytest.mark.parametrize(
    "row",
    [
        PAIR | {"rating_chosen": 5, "rating_rejected": 5},
        PAIR | {"chosen-score": "2", "rejected-score": 2.0},
        PAIR | {"status": "tie"},
        PAIR | {"winner": "Tie (both bad)"},
        PAIR | {"rating": [9.0, 9.0]},
    ],
)
def test_a_tie_prefers_neither(row: dict[str, Any]) -> None:
    pair = row_of(row)
    assert isinstance(pair, Pair)
    assert pair.preferred == 0.5


def test_scores_of_a_pair_are_read_under_any_name_that_differs_in_the_sides_alone() -> None:
    for row in ({"reward_chosen": 2, "reward_rejected": 1}, {"chosen_avg_rating": 2, "rejected_avg_rating": 1}):
        assert row_of(PAIR | row) == row_of(PAIR | {"score_chosen": 2, "score_rejected": 1})
    assert row_of(PAIR | {"margin": 0}) == row_of(PAIR | {"score_chosen": 0, "score_rejected": 0, "preferred": 1})


def test_a_list_of_responses_is_compared_on_one_scale() -> None:
    def ranking(*items: dict[str, Any]) -> dict[str, Any]:
        return {"instruction": "ask", "completions": [{"response": f"r{k}"} | item for k, item in enumerate(items)]}

    mixed = row_of(ranking({"fine-grained_score": 4.5, "overall_score": 9}, {"overall_score": 6}))
    assert isinstance(mixed, Ranking)
    assert (mixed.ranks, mixed.scores) == ((1, 2), (9, 6))
    unjudged = row_of(ranking({"rating": 1}, {"rating": None}, {"rating": 5}))
    assert isinstance(unjudged, Ranking)
    assert (len(unjudged.responses), unjudged.ranks) == (2, (2, 1))
    apart = reading_of(*[ranking({"score": 1}, {"score": 2})] * 2, ranking({"score": 1}, {"rating": 2}))
    assert [problem.reason for problem in apart.skipped] == ["ranking.scales"]
    scales = ("fine-grained_score", "overall_score")
    fine, overall = reading_of(*(ranking({key: 8}, {key: 2}) for key in scales)).rows
    assert isinstance(fine, Ranking)
    assert isinstance(overall, Ranking)
    assert (fine.scores, overall.scores, overall.ranks) == ((8, 2), None, (1, 2))
    listed = row_of({"prompt": "ask", "generations": ["a", "b", "c"], "ratings": [5, None, 1]})
    assert isinstance(listed, Ranking)
    assert (listed.ranks, listed.scores) == ((1, 2), (5, 1))


@pytest.mark.parametrize(("chosen", "rejected", "ranks"), [(["a"], ["b", "c"], (1, 2, 2)), ("a", ["b", "c"], (1, 2, 2)),
                                                           (["a", "b"], "c", (1, 1, 2))])  # fmt: skip
def test_several_texts_on_a_side_are_a_ranking(chosen: object, rejected: object, ranks: tuple[int, ...]) -> None:
    ranking = row_of({"prompt": "ask", "chosen": chosen, "rejected": rejected})
    assert isinstance(ranking, Ranking)
    assert (ranking.ranks, ranking.responses) == (ranks, ("a", "b", "c"))
    assert row_of({"prompt": "ask", "chosen": ["say"], "rejected": ["no"]}) == row_of(PAIR)


@pytest.mark.parametrize("form", [json.dumps, str, lambda turns: [json.dumps(turn) for turn in turns]])
def test_text_that_holds_turns_is_turns(form: Any) -> None:
    assert row_of({key: form(turns) for key, turns in CHAT.items()}) == row_of(CHAT)
    assert row_of({"messages": form([U, A])}) == row_of({"messages": [U, A]})
    for text in ('[{"role": "x"}]', "[1]", '{"a": 1, "role": 2}', "[role]"):
        assert row_of(PAIR | {"chosen": text}).chosen == text  # type: ignore[union-attr]


def test_text_that_holds_turns_is_read_as_strictly_as_a_file() -> None:
    told = reading_of({"messages": "[{'role': 'user', 'content': 'ask'}, {'role': 'assistant', 'value': 'say', 1: 2}]"})
    assert (len(told.rows), told.notes[0].message) == (1, "fields that are not used: messages[].1.")
    for text, wrong in (('{"role": "assistant", "content": "a", "content": "b"}', 'the key "content" stands twice'),
                        ('{"role": "assistant", "content": NaN}', "NaN is not a number"),
                        ('{"role": "assistant", "content": "\\ud800"}', "half of a surrogate pair"),
                        ("{'role': 'assistant', 'content': '\\ud800'}", "half of a surrogate pair")):  # fmt: skip
        with pytest.raises(UserError, match=f"rows:1: the text of messages cannot be read: .*{wrong}"):
            read([PAIR | {"chosen": text}])


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "thought"])
def test_a_thought_beside_the_content_belongs_to_the_response(key: str) -> None:
    pair = row_of(CHAT | {"chosen": [A | {key: "since"}], "rejected": [A | {key: "guess"}]})
    assert isinstance(pair, Pair)
    assert [*pair.chosen, *pair.rejected] == [Message("assistant", "say", thought) for thought in ("since", "guess")]
    part = in_message(content=[{"type": "thinking", "thinking": "since"}, {"type": "text", "text": "say"}])
    assert row_of(part).chosen == pair.chosen  # type: ignore[union-attr]


HOLES = [PAIR | {"chosen": None}, PAIR | {"rejected": []}, PAIR | {"chosen": [{"role": "assistant", "content": None}]}]


@pytest.mark.parametrize("hole", HOLES)
def test_what_is_null_or_empty_makes_one_row_unusable(hole: dict[str, Any]) -> None:
    reading = reading_of(PAIR, hole, PAIR | {"prompt": "b"})
    assert [(problem.reason, problem.location) for problem in reading.skipped] == [("row.hole", "rows:2")]
    assert len(reading.rows) == 2


@pytest.mark.parametrize("null", [DEMO | {"label": None}, DEMO | {"score": None}])
def test_a_null_judgement_does_not_make_a_rating_a_demo(null: dict[str, Any]) -> None:
    rated = {key: 1 if value is None else value for key, value in null.items()}
    reading = reading_of(rated, rated | {"prompt": "b"}, null)
    assert [type(row) for row in reading.rows] == [Rating, Rating]
    assert [problem.reason for problem in reading.skipped] == ["row.hole"]


def test_null_and_blank_keys_decide_nothing() -> None:
    empty = {"prompt": "", "system": "", "system_prompt": None, "input": None, "images": None}
    plain = {"question": "ask", "chosen": "say", "rejected": "no"}
    assert row_of(empty | plain) == row_of(plain)
    assert row_of({"chosen": "", "rejected": "", "label": None} | DEMO) == row_of(DEMO)
    assert row_of({"system_prompt": "be kind"} | plain) == row_of({"system": "be kind"} | plain)
    with pytest.raises(UserError, match="two different system texts"):
        read([{"system": "be kind", "system_prompt": "be short"} | plain])


def test_text_beside_conversations_in_one_file_is_told() -> None:
    (note,) = reading_of(PAIR, PAIR | {"system": "be kind"}).notes
    assert note.reason == "rows.mixed"
    assert "line 1) are text that is continued as it stands" in note.message


@pytest.mark.parametrize(
    ("chosen", "rejected", "equal"),
    [
        ("if x:\n    y\nz", "if x:\n    y\n    z", False),
        ("a\n\nb", "a\nb", False),
        ("a  b ", "a b\n", True),
        ("x\n  a  b", "x\n  a b", True),
    ],
)
def test_indentation_is_a_difference(chosen: str, rejected: str, equal: bool) -> None:
    reading = reading_of(PAIR | {"chosen": chosen, "rejected": rejected}, PAIR)
    assert [problem.reason for problem in reading.skipped] == ["pair.equal_after_folding"] * equal


def test_one_defect_of_many_rows_is_one_problem() -> None:
    with pytest.raises(UserError) as caught:
        read([PAIR | {"chosen": [{"role": f"r{k}", "content": f"text {k}"}]} for k in range(500)])
    (problem,) = caught.value.problems
    assert "(and 499 more rows, up to 500)" in problem.message


def test_a_response_of_weight_0_teaches_nothing() -> None:
    reading = reading_of({"messages": [U, A | {"weight": 0}]}, {"messages": [U, A | {"weight": 1}]})
    assert [problem.reason for problem in reading.skipped] == ["response.weight"]


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("value", [0, False])
def test_a_turn_may_say_in_the_words_of_any_trainer_that_it_is_not_learned_from(key: str, value: object) -> None:
    (row,) = reading_of({"messages": [U, A | {key: value}, U, N | {key: not value}]}).rows
    assert isinstance(row, Demo)
    assert [turn.content for turn in row.response] == ["no"]


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (A | {"weight": 0.5}, "weight is a number \\(0.5\\), needs to be 0 or 1"),
        (A | {"loss": "no"}, "loss is the text 'no', needs to be 0 or 1"),
        (U | {"train": True}, "turns of the user are not learned from"),
    ],
)
def test_a_weight_that_cannot_be_meant_is_refused(turn: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        reading_of({"messages": [U, turn, U, A]})

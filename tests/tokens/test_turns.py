"""Responses with several turns: each is scored after exactly what the template gives a model that is to say it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokens.test_chat import TEMPLATES
from transformers import PreTrainedTokenizerBase

from preftune.rows.row import Demo, Message, Pair, Place, Row, turns_of, with_last_turn
from preftune.tokens.groups import TokenGroup
from preftune.tokens.tokenize import Tokenized, tokenize

Make = Callable[..., PreTrainedTokenizerBase]
PLACE = Place("made", 1)


def user(content: str) -> Message:
    return Message("user", content)


def said(content: str, learned: bool = True) -> Message:
    return Message("assistant", content, learned=learned)


ASKED = (Message("system", "be kind"), user("2+2?"))
ANSWERS = (said("<think>\nadd\n</think>\n\n4"), user("sure?"), said("yes, the cat"), user("why?"), said("it is so"))


def tokenized(tokenizer: PreTrainedTokenizerBase, *rows: Row, **limits: object) -> Tokenized:
    return tokenize(rows, tokenizer, **{"max_tokens": 999, **limits})  # type: ignore[arg-type]


def ids_of(group: TokenGroup) -> list[list[tuple[list[int], list[int]]]]:
    return [[(turn.prompt.tolist(), turn.ids.tolist()) for turn in turns] for turns in group.turns]


def alone(tokenizer: PreTrainedTokenizerBase, asked: tuple[Message, ...], answers: tuple[Message, ...]) -> list:
    """Each turn to learn from as a demo of its own."""
    rows = [Demo(prompt=(*asked, *answers[:k]), response=(answers[k],), place=PLACE) for k in turns_of(answers)]
    return [turn for group in tokenized(tokenizer, *rows).groups for turns in ids_of(group) for turn in turns]


@pytest.mark.parametrize("name", [*TEMPLATES, "none"])
def test_a_turn_in_a_conversation_is_the_turn_alone(byte_level: Make, name: str) -> None:
    tokenizer = byte_level(TEMPLATES.get(name))
    answers = ANSWERS if name != "none" else (said("4"), *ANSWERS[1:])
    (group,) = tokenized(tokenizer, Demo(prompt=ASKED, response=answers, place=PLACE)).groups
    assert ids_of(group) == [alone(tokenizer, ASKED, answers)]
    turns = group.turns[0]
    assert group.responses[0].tolist() == [id_ for turn in turns for id_ in turn.ids.tolist()]
    assert group.longest == len(turns[-1].prompt) + len(turns[-1].ids)
    if name == "kept":  # nothing is written twice, so the conversation is one sequence but for line breaks
        assert group.tokens == group.longest == group.tokens_naive


def test_the_prompt_of_a_turn_is_what_a_model_is_given(byte_level: Make) -> None:
    tokenizer = byte_level()
    (group,) = tokenized(tokenizer, Demo(prompt=ASKED, response=ANSWERS, place=PLACE)).groups
    for k, turn in zip(turns_of(ANSWERS), group.turns[0], strict=True):
        messages = [{"role": m.role, "content": m.content} for m in (*ASKED, *ANSWERS[:k])]
        assert tokenizer.decode(turn.prompt) == tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )


def test_both_sides_of_a_pair_may_go_on(byte_level: Make) -> None:
    tokenizer, other = byte_level(), (said("5"), user("no"), said("4"))
    (group,) = tokenized(tokenizer, Pair(prompt=ASKED, chosen=ANSWERS, rejected=other, place=PLACE)).groups
    assert ids_of(group) == [alone(tokenizer, ASKED, answers) for answers in (ANSWERS, other)]
    (short,) = tokenized(tokenizer, Pair(prompt=ASKED, chosen=ANSWERS, rejected=other[:1], place=PLACE)).groups
    assert [len(turns) for turns in short.turns] == [3, 1]


def test_a_turn_that_does_not_count_is_context(byte_level: Make) -> None:
    answers = (said("4"), user("sure?"), said("no", learned=False), user("why?"), said("it is so"))
    (group,) = tokenized(byte_level(), Demo(prompt=ASKED, response=answers, place=PLACE)).groups
    assert ids_of(group) == [alone(byte_level(), ASKED, answers)]
    assert "no" in byte_level().decode(group.later_turns[0][0].context)


def test_a_turn_that_does_not_count_may_be_the_last(byte_level: Make) -> None:
    tokenizer, answers = byte_level(), (said("4"), user("sure?"), said("no", learned=False))
    rows = [Pair(prompt=ASKED, chosen=answers, rejected=(said("5"), *answers[1:]), place=PLACE),
            with_last_turn(Demo(prompt=ASKED, response=answers, place=PLACE))]  # fmt: skip
    (pair, demo) = map(ids_of, tokenized(tokenizer, *rows).groups)
    assert pair == [alone(tokenizer, ASKED, (said(text),)) for text in ("4", "5")]
    assert demo == pair[:1]


def test_turns_that_are_too_long_are_left_out_of_a_demo_and_cut_where_asked(byte_level: Make) -> None:
    tokenizer, row = byte_level(), Demo(prompt=ASKED, response=ANSWERS, place=PLACE)
    (group,) = tokenized(tokenizer, row).groups
    limit = group.longest - 1
    skipping = tokenized(tokenizer, row, max_tokens=limit)
    assert (ids_of(skipping.groups[0])[0], skipping.cut) == (ids_of(group)[0][:-1], 0)
    assert "turns.too_long" in [note.reason for note in skipping.notes]
    cutting = tokenized(tokenizer, row, max_tokens=limit, too_long="cut")
    *whole, (prompt, ids) = ids_of(group)[0]
    assert (ids_of(cutting.groups[0])[0], cutting.cut) == ([*whole, (prompt, ids[:-1])], 1)
    pair = Pair(prompt=ASKED, chosen=ANSWERS, rejected=(said("5"),), place=PLACE)
    assert [problem.reason for problem in tokenized(tokenizer, pair, max_tokens=limit).skipped] == ["too_long"]
    first = len(group.prompt) + len(group.turns[0][0].ids)
    assert [p.reason for p in tokenized(tokenizer, row, max_tokens=first - 1).skipped] == ["too_long"]
    assert not tokenized(tokenizer, row, max_tokens=first).groups[0].later_turns

"""Weights of tokens: what a row may say, what it may not, and which token gets which."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from preftune.errors import UserError
from preftune.rows.read import read
from preftune.rows.row import Message, Pair, Span
from preftune.tokens.groups import TokenGroup
from preftune.tokens.tokenize import Tokenized, tokenize

Make = Callable[..., PreTrainedTokenizerBase]
Row = Callable[..., Pair]
PAIR = {"prompt": "a", "chosen": "the cat", "rejected": "no"}
MANY = {"prompt": "a", "responses": ["the cat", "no", "so"], "ranks": [1, 2, 3]}


def with_weights(row: Pair, *weights: object) -> Pair:
    return msgspec.structs.replace(row, token_weights=weights)


def group_of(row: Pair, tokenizer: PreTrainedTokenizerBase) -> TokenGroup:
    (group,) = tokenize([row], tokenizer, max_tokens=2**31).groups
    return group


def weights_of(group: TokenGroup, index: int = 0) -> list[float]:
    column = group.column("weight")
    assert column is not None
    assert column[index].dtype == np.float32
    assert [len(weights) for weights in column] == [len(response) for response in group.responses]
    return column[index].tolist()


READ = {
    "a number a token": (PAIR | {"chosen_token_weights": [1, 0.5, 2]}, ((1.0, 0.5, 2.0), None)),
    "spans, in order": (
        PAIR | {"chosen_token_weights": [[4, 7, 2], [0, 3, 0]], "rejected_token_weights": [[0, 2, 0.5]]},
        ((Span(0, 3, 0.0), Span(4, 7, 2.0)), (Span(0, 2, 0.5),)),
    ),
    "null": (PAIR | {"chosen_token_weights": None}, None),
    "whole numbers written as fractions, as Parquet does": (
        PAIR | {"rejected_token_weights": [[0.0, 1.0, 0.5]]},
        (None, (Span(0, 1, 0.5),)),
    ),
    "votes, the better one first": (
        {"prompt": "a", "response_a": "b", "response_b": "cd", "votes_a": 0, "votes_b": 1,
         "token_weights_b": [[1, 2, 3]]},
        ((Span(1, 2, 3.0),), None),
    ),
    "a ranking": (MANY | {"token_weights": [None, [[0, 1, 2]], [1, 2]]}, (None, (Span(0, 1, 2.0),), (1.0, 2.0))),
    "a scored list": (
        {"prompt": "a",
         "completions": [{"response": "b", "score": 1, "token_weights": [3, 1]}, {"response": "c", "score": 0}]},
        ((3.0, 1.0), None),
    ),
    "a rating": ({"prompt": "a", "completion": "b", "label": True, "token_weights": [1, 0]}, ((1.0, 0.0),)),
    "a demo": ({"prompt": "a", "completion": "b", "token_weights": [1, 0]}, ((1.0, 0.0),)),
    "messages": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "be"}],
         "token_weights": [[1, 2, 0]]},
        ((Span(1, 2, 0.0),),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", READ)
def test_rows_say_what_tokens_count(form: str, tmp_path: Path) -> None:
    value, expected = READ[form]
    (tmp_path / "rows.jsonl").write_text(json.dumps(value))
    found = read(str(tmp_path / "rows.jsonl"))
    assert [row.token_weights for row in found.rows] == [expected]
    assert found.notes == []


WRONG = {
    "no list": (PAIR | {"chosen_token_weights": 2}, ['"chosen_token_weights" is a number (2), needs a list']),
    "empty": (PAIR | {"chosen_token_weights": []}, ["an empty list"]),
    "text": (PAIR | {"chosen_token_weights": ["x", 1]}, ["chosen_token_weights[0]", "needs a finite number"]),
    "true": (PAIR | {"chosen_token_weights": [True]}, ["a truth value"]),
    "negative": (PAIR | {"chosen_token_weights": [1, -1]}, ["chosen_token_weights[1]", "-1, needs 0 or more"]),
    "nothing": (PAIR | {"chosen_token_weights": [0, 0]}, ["all 0"]),
    "both forms": (PAIR | {"chosen_token_weights": [[0, 1, 2], 1]}, ["[1] is a number (1)", "or all"]),
    "no weight": (PAIR | {"chosen_token_weights": [[0, 1]]}, ["needs [begin, end, weight]"]),
    "beyond the text": (PAIR | {"rejected_token_weights": [[0, 3, 1]]}, ["which has 2 characters: 0 to 3"]),
    "backwards": (PAIR | {"chosen_token_weights": [[3, 2, 1]]}, ["3 to 2", "one past the last"]),
    "nowhere": (PAIR | {"chosen_token_weights": [[3, 3, 1]]}, ["3 to 3"]),
    "half a character": (PAIR | {"chosen_token_weights": [[0.5, 2, 1]]}, ["0.5 to 2"]),
    "twice": (PAIR | {"chosen_token_weights": [[2, 5, 1], [0, 3, 1]]}, ["the spans from 0 and from 2 overlap"]),
    "another kind's key": (PAIR | {"token_weights": [1]}, ['"token_weights" is not read', '"chosen_token_w']),
    "a slip": (PAIR | {"chosen_token_weight": [1]}, ['"chosen_token_weight" is not read']),
    "a ranking's in the wrong number": (MANY | {"token_weights": [None]}, ["1 entries for 3 responses"]),
    "a list's outside": (
        {"prompt": "a", "completions": [{"response": "b", "score": 1}], "token_weights": [[1]]},
        ["each entry of the list"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("slip", WRONG)
def test_what_does_not_fit_is_an_error_with_its_place(slip: str, tmp_path: Path) -> None:
    value, told = WRONG[slip]
    (tmp_path / "rows.jsonl").write_text(json.dumps(value))
    with pytest.raises(UserError) as raised:
        read(str(tmp_path / "rows.jsonl"))
    for part in ("rows.jsonl:1", *told):
        assert part in str(raised.value)


def test_spans_are_those_of_tokens_and_the_end_counts_one(byte_level: Make, pair: Row) -> None:
    row = with_weights(pair("the cat:", " sat on the mat", " ran"), (Span(1, 4, 0.5), Span(8, 11, 3.0)), None)
    tokenizer = byte_level()
    group = group_of(row, tokenizer)
    told = dict(zip(tokenizer.convert_ids_to_tokens(group.responses[0].tolist()), weights_of(group), strict=True))
    assert told == {"Ġsat": 0.5, "Ġon": 1, "Ġthe": 3, "Ġmat": 1, "<|im_end|>": 1}
    assert weights_of(group, 1) == [1] * len(group.responses[1])


def test_a_token_counts_the_mean_of_its_characters_without_white_space(byte_level: Make, pair: Row) -> None:
    row = with_weights(pair("the cat:", " sat", " the  \n"), (Span(1, 3, 0.0),), (Span(4, 6, 4.0), Span(1, 2, 4.0)))
    group = group_of(row, byte_level())
    assert weights_of(group) == pytest.approx([1 / 3, 1])
    tokens = byte_level().convert_ids_to_tokens(group.responses[1].tolist())
    assert tokens[0] == "Ġthe"
    assert weights_of(group, 1)[0] == pytest.approx(2), "one of three letters counts 4"
    assert weights_of(group, 1)[1:] == [4, 4, 1, 1], tokens


def test_a_character_of_several_tokens_gives_each_its_weight(byte_level: Make, pair: Row) -> None:
    group = group_of(with_weights(pair("a", " \u6771 x", " b"), (Span(1, 2, 5.0),), None), byte_level())
    assert weights_of(group) == [1, 5, 5, 5, 1, 1, 1]


def test_a_number_a_token_goes_as_it_stands(byte_level: Make, pair: Row) -> None:
    group = group_of(with_weights(pair("the cat:", " sat on", " ran"), (0.5, 2.0, 0.0), None), byte_level())
    assert weights_of(group) == [0.5, 2, 0]


def test_numbers_that_do_not_fit_the_tokens_are_an_error(byte_level: Make, pair: Row) -> None:
    with pytest.raises(UserError) as raised:
        tokenize([with_weights(pair("the cat:", " sat on", " ran"), (0.5, 2.0), None)], byte_level(), max_tokens=50)
    assert "made.jsonl:1: a response has 3 tokens, its end token included, and 2 token weights." in str(raised.value)


def test_cut_responses_keep_their_first_weights(byte_level: Make, pair: Row) -> None:
    row = pair("the cat:", " sat on the mat", " the dog sat")
    tokenizer = byte_level()
    full = group_of(row, tokenizer)
    room = len(full.prompt) + 2

    def cut(*weights: object) -> Tokenized:
        return tokenize([with_weights(row, *weights)], tokenizer, max_tokens=room, too_long="cut")

    assert weights_of(cut((Span(4, 7, 2.0),), None).groups[0]) == [1, 2]
    assert [p.reason for p in cut((Span(0, 8, 0.0),), None).skipped] == ["weights.none"]
    with pytest.raises(UserError, match="5 tokens, its end token included, and 2"):
        cut((1.0, 1.0), None)  # of the whole response, not of what is left


def test_sentencepiece_and_a_token_over_the_boundary(sentence: PreTrainedTokenizerBase, pair: Row) -> None:
    group = group_of(with_weights(pair("the", " cat at", " ab"), (Span(1, 4, 2.0),), (Span(2, 3, 3.0),)), sentence)
    assert sentence.convert_ids_to_tokens(group.responses[0].tolist()) == ["▁cat", "▁", "at", "</s>"]
    assert weights_of(group) == [2, 1, 1, 1]
    assert weights_of(group, 1) == [1, 1, 3, 1]
    merged = group_of(with_weights(pair("the c", "at", "ab"), (Span(1, 2, 3.0),), (Span(1, 2, 3.0),)), sentence)
    assert (weights_of(merged), weights_of(merged, 1)) == ([2, 1], [1, 3, 1])


def test_the_begin_token_written_into_a_prompt_moves_nothing(sentence: PreTrainedTokenizerBase, pair: Row) -> None:
    group = group_of(with_weights(pair("<s>the", " cat at", " at"), (Span(1, 4, 2.0),), None), sentence)
    assert weights_of(group) == [2, 1, 1, 1]


def test_conversations_count_from_the_words_of_the_response(byte_level: Make, chat: Row) -> None:
    tokenizer = byte_level()
    group = group_of(with_weights(chat("hi", chosen="so the mat"), (Span(7, 10, 2.0),), None), tokenizer)
    assert tokenizer.convert_ids_to_tokens(group.responses[0].tolist())[-3:] == ["Ġthe", "Ġmat", "<|im_end|>"]
    assert weights_of(group)[-3:] == [1, 2, 1]
    assert set(weights_of(group)[:-2]) == {1}


def test_a_transcript_puts_a_space_before_them(sentence: PreTrainedTokenizerBase, chat: Row) -> None:
    row = chat("a", chosen="cat the", rejected="dog")
    group = group_of(with_weights(row, (Span(4, 7, 2.0),), None), sentence)
    assert sentence.convert_ids_to_tokens(group.responses[0].tolist()) == ["▁cat", "▁t", "h", "e", "</s>"]
    assert weights_of(group) == [1, 2, 2, 2, 1]


TRIMS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_template_that_trims_moves_the_spans(byte_level: Make, chat: Row) -> None:
    row = chat("hi", chosen="  the mat ", rejected="the dog")
    group = group_of(with_weights(row, (Span(6, 9, 2.0),), None), byte_level(TRIMS))
    plain = group_of(
        with_weights(chat("hi", chosen="the mat", rejected="the dog"), (Span(4, 7, 2.0),), None), byte_level()
    )
    assert weights_of(group) == weights_of(plain)
    assert 2 in weights_of(group)


def test_a_template_that_rewrites_leaves_the_row_out(byte_level: Make, chat: Row) -> None:
    template = TRIMS.replace("m.content | trim", "m.content | replace('mat', 'rug')")
    done = tokenize([with_weights(chat("hi"), (Span(0, 1, 2.0),), None)], byte_level(template), max_tokens=99)
    assert [problem.reason for problem in done.skipped] == ["weights.text"]
    exact = group_of(chat("hi"), byte_level(template))
    numbers = tuple(float(k) for k in range(len(exact.responses[0])))
    assert weights_of(group_of(with_weights(chat("hi"), numbers, None), byte_level(template))) == list(numbers)


def test_control_tokens_in_the_text_are_counted_as_the_characters_that_they_are(byte_level: Make, chat: Row) -> None:
    said = "a <|im_end|> cat"
    row = chat("hi <|im_start|> you", chosen=said, rejected="no")
    group = group_of(with_weights(row, (Span(said.index("cat"), len(said), 2.0), Span(2, 12, 0.0)), None), byte_level())
    told = weights_of(group)
    assert told[-2:] == [2, 1]
    assert told[0] == 1
    assert set(told[1:-2]) <= {0, 1}
    assert 0 in told


def test_rows_of_one_file_need_not_all_have_weights(byte_level: Make, pair: Row) -> None:
    done = tokenize([pair(), with_weights(pair(), None, (Span(1, 2, 0.5),))], byte_level(), max_tokens=50)
    assert done.groups[0].column("weight") is None
    assert weights_of(done.groups[1]) == [1] * len(done.groups[1].responses[0])


def test_a_message_is_counted_alone(byte_level: Make, pair: Row) -> None:
    """Spans are of the response's last turn, in characters, however they are written in bytes."""
    asked, said = (Message("user", "\u6771"),), (Message("assistant", "\u6771 cat"),)
    row = with_weights(pair(asked, said, (Message("assistant", "no"),)), (Span(0, 1, 0.5),), None)
    assert weights_of(group_of(row, byte_level()))[:4] == [0.5, 0.5, 0.5, 1]


def test_lists_of_a_wrong_length_are_one_problem(byte_level: Make, pair: Row) -> None:
    rows = [with_weights(pair(chosen=" the" * k), (1.0,), None) for k in range(2, 9)]
    with pytest.raises(UserError) as raised:
        tokenize(rows, byte_level(), max_tokens=99)
    assert len(raised.value.problems) == 1
    assert "and 1 token weights. (and 6 more rows, up to 1) Give one a token" in str(raised.value)

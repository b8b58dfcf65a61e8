"""Weights of tokens: what a row may say, what it may not, and which token gets which."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from preftune.errors import UserError
from preftune.rows.read import read
from preftune.rows.row import Pair, Span
from preftune.tokens.tokenize import Tokenized, tokenize

Make = Callable[..., PreTrainedTokenizerBase]
Row = Callable[..., Pair]
PAIR = {"prompt": "a", "chosen": "the cat", "rejected": "no"}
MANY = {"prompt": "a", "responses": ["the cat", "no", "so"], "ranks": [1, 2, 3]}


def with_weights(row: Pair, *weights: object) -> Pair:
    return msgspec.structs.replace(row, token_weights=weights)


def weighted(row: Pair, tokenizer: PreTrainedTokenizerBase, *weights: object) -> dict[str, list]:
    """The tokens of both responses, and what each of them counts."""
    (group,) = tokenize([with_weights(row, *weights)], tokenizer, max_tokens=2**31).groups
    column = group.column("weight")
    assert column is not None
    assert {numbers.dtype for numbers in column} == {np.dtype(np.float32)}
    tokens = [tokenizer.convert_ids_to_tokens(ids.tolist()) for ids in group.responses]
    counts = [numbers.tolist() for numbers in column]
    return dict(zip(("chosen tokens", "rejected tokens", "chosen", "rejected"), (*tokens, *counts), strict=True))


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
def test_rows_say_what_tokens_count(form: str) -> None:
    value, expected = READ[form]
    reading = read([value])
    assert ([row.token_weights for row in reading.rows], reading.notes) == ([expected], [])


WRONG = {
    "no list": (PAIR | {"chosen_token_weights": 2}, ['"chosen_token_weights" is a number (2), needs a list']),
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
def test_what_does_not_fit_is_an_error_with_its_place(slip: str) -> None:
    value, texts = WRONG[slip]
    with pytest.raises(UserError, match=r"^rows:1: ") as raised:
        read([value])
    assert [text for text in texts if text not in str(raised.value)] == []


def test_spans_are_those_of_tokens_and_the_end_counts_one(byte_level: Make, pair: Row) -> None:
    row = pair("the cat:", " sat on the mat", " ran")
    result = weighted(row, byte_level(), (Span(1, 4, 0.5), Span(8, 11, 3.0)), None)
    by_token = dict(zip(result["chosen tokens"], result["chosen"], strict=True))
    assert by_token == {"Ġsat": 0.5, "Ġon": 1, "Ġthe": 3, "Ġmat": 1, "<|im_end|>": 1}
    assert set(result["rejected"]) == {1}


def test_a_token_counts_the_mean_of_its_characters_without_white_space(byte_level: Make, pair: Row) -> None:
    row = pair("the cat:", " sat", " the  \n")
    result = weighted(row, byte_level(), (Span(1, 3, 0.0),), (Span(4, 6, 4.0), Span(1, 2, 4.0)))
    assert result["chosen"] == pytest.approx([1 / 3, 1])
    assert result["rejected tokens"][0] == "Ġthe"
    assert result["rejected"] == [pytest.approx(2), 4, 4, 1, 1], "one of three letters counts 4"


def test_a_character_of_several_tokens_gives_each_its_weight(byte_level: Make, pair: Row) -> None:
    result = weighted(pair("a", " \u6771 x", " b"), byte_level(), (Span(1, 2, 5.0),), None)
    assert result["chosen"] == [1, 5, 5, 5, 1, 1, 1]


def test_a_number_a_token_goes_as_it_stands_or_does_not_fit(byte_level: Make, pair: Row) -> None:
    row = pair("the cat:", " sat on", " ran")
    assert weighted(row, byte_level(), (0.5, 2.0, 0.0), None)["chosen"] == [0.5, 2, 0]
    with pytest.raises(
        UserError, match=r"made.jsonl:1: a response has 3 tokens, its end token included, and 2 token w"
    ):
        weighted(row, byte_level(), (0.5, 2.0), None)


def test_cut_responses_keep_their_first_weights(byte_level: Make, pair: Row) -> None:
    row = pair("the cat:", " sat on the mat", " the dog sat")
    (full,) = tokenize([row], byte_level(), max_tokens=99).groups

    def cut(*weights: object) -> Tokenized:
        allowed = len(full.prompt) + 2
        return tokenize([with_weights(row, *weights)], byte_level(), max_tokens=allowed, too_long="cut")

    assert cut((Span(4, 7, 2.0),), None).groups[0].column("weight")[0].tolist() == [1, 2]
    assert [p.reason for p in cut((Span(0, 8, 0.0),), None).skipped] == ["weights.none"]
    with pytest.raises(UserError, match="5 tokens, its end token included, and 2"):
        cut((1.0, 1.0), None)  # of the whole response, not of what is left


def test_sentencepiece_and_a_token_over_the_boundary(sentence: PreTrainedTokenizerBase, pair: Row) -> None:
    result = weighted(pair("the", " cat at", " ab"), sentence, (Span(1, 4, 2.0),), (Span(2, 3, 3.0),))
    assert result["chosen tokens"] == ["▁cat", "▁", "at", "</s>"]
    assert (result["chosen"], result["rejected"]) == ([2, 1, 1, 1], [1, 1, 3, 1])
    merged = weighted(pair("the c", "at", "ab"), sentence, (Span(1, 2, 3.0),), (Span(1, 2, 3.0),))
    assert (merged["chosen"], merged["rejected"]) == ([2, 1], [1, 3, 1])


def test_the_begin_token_written_into_a_prompt_moves_nothing(sentence: PreTrainedTokenizerBase, pair: Row) -> None:
    assert weighted(pair("<s>the", " cat at", " at"), sentence, (Span(1, 4, 2.0),), None)["chosen"] == [2, 1, 1, 1]


def test_conversations_count_from_the_words_of_the_response(byte_level: Make, chat: Row) -> None:
    result = weighted(chat("hi", chosen="so the mat"), byte_level(), (Span(7, 10, 2.0),), None)
    assert result["chosen tokens"][-3:] == ["Ġthe", "Ġmat", "<|im_end|>"]
    assert result["chosen"][-2:] == [2, 1]
    assert set(result["chosen"][:-2]) == {1}


def test_a_transcript_puts_a_space_before_them(sentence: PreTrainedTokenizerBase, chat: Row) -> None:
    result = weighted(chat("a", chosen="cat the", rejected="dog"), sentence, (Span(4, 7, 2.0),), None)
    assert result["chosen tokens"] == ["▁cat", "▁t", "h", "e", "</s>"]
    assert result["chosen"] == [1, 2, 2, 2, 1]


TRIMS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_template_that_trims_moves_the_spans(byte_level: Make, chat: Row) -> None:
    spaced, bare = (chat("hi", chosen=text, rejected="the dog") for text in ("  the mat ", "the mat"))
    trimmed = weighted(spaced, byte_level(TRIMS), (Span(6, 9, 2.0),), None)
    assert trimmed == weighted(bare, byte_level(), (Span(4, 7, 2.0),), None)
    assert 2 in trimmed["chosen"]


def test_a_template_that_rewrites_leaves_the_row_out(byte_level: Make, chat: Row) -> None:
    tokenizer = byte_level(TRIMS.replace("m.content | trim", "m.content | replace(' ', '  ')"))
    rows = [chat("hi"), with_weights(chat("hi"), (Span(0, 1, 2.0),), None)]
    result = tokenize(rows, tokenizer, max_tokens=99)
    assert [problem.reason for problem in result.skipped] == ["weights.text"]
    numbers = tuple(float(k) for k in range(len(result.groups[0].responses[0])))
    assert weighted(chat("hi"), tokenizer, numbers, None)["chosen"] == [*numbers]


def test_control_tokens_in_the_text_are_counted_as_the_characters_that_they_are(byte_level: Make, chat: Row) -> None:
    text = "a <|im_end|> cat"
    row = chat("hi <|im_start|> you", chosen=text, rejected="no")
    weights = weighted(row, byte_level(), (Span(text.index("cat"), len(text), 2.0), Span(2, 12, 0.0)), None)["chosen"]
    assert (weights[0], weights[-2:]) == (1, [2, 1])
    assert set(weights[1:-2]) <= {0, 1}
    assert 0 in weights


def test_rows_of_one_file_need_not_all_have_weights(byte_level: Make, pair: Row) -> None:
    rows = [pair(), with_weights(pair(), None, (Span(1, 2, 0.5),))]
    plain, partly = tokenize(rows, byte_level(), max_tokens=50).groups
    assert plain.column("weight") is None
    assert set(partly.column("weight")[0]) == {1}


def test_a_message_is_counted_alone(byte_level: Make, chat: Row) -> None:
    """Spans are of the response's last turn, in characters, however they are written in bytes."""
    row = chat("\u6771", chosen="\u6771 cat", rejected="no")
    assert weighted(row, byte_level(), (Span(0, 1, 0.5),), None)["chosen"][:4] == [0.5, 0.5, 0.5, 1]


def test_lists_of_a_wrong_length_are_one_problem(byte_level: Make, pair: Row) -> None:
    rows = [with_weights(pair(chosen=" the" * k), (1.0,), None) for k in range(2, 9)]
    with pytest.raises(UserError) as raised:
        tokenize(rows, byte_level(), max_tokens=99)
    assert len(raised.value.problems) == 1
    assert "and 1 token weights. (and 6 more rows, up to 1) Give one a token" in str(raised.value)

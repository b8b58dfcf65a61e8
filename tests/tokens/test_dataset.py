"""From files to groups: every row is accounted for, and too few usable ones stop the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import tiny
from transformers import PreTrainedTokenizerBase

from preftune.config.run import Run
from preftune.errors import UserError
from preftune.model.config import Model
from preftune.rows.account import Account
from preftune.rows.config import Data
from preftune.rows.split import read_rows
from preftune.run.dataset import tokenize_rows


def account_of(data: Data, tokenizer: PreTrainedTokenizerBase) -> Account:
    run = Run(model=Model(path=tiny(), tokenizer=tokenizer), data=data)
    return tokenize_rows(run, read_rows(data)).account


def write(path: Path, rows: list[tuple[str, str, str]]) -> str:
    names = ("prompt", "chosen", "rejected")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return str(path)


GOOD = [(f"question {k}", " a good one", " a bad one") for k in range(9)]
ONLY_END = ("another question", " a good one", "</s>")  # seen to be empty only by who knows the end token


@pytest.mark.parametrize("part", ["train", "evaluate"])
def test_rows_unusable_in_tokens_count_too(part: str, tmp_path: Path, sentence: PreTrainedTokenizerBase) -> None:
    bad, good = write(tmp_path / "bad.jsonl", [*GOOD, ONLY_END]), write(tmp_path / "good.jsonl", [("x", " y", " z")])
    data = Data(train=bad if part == "train" else good, evaluate=good if part == "train" else bad)
    with pytest.raises(UserError, match=r"1 of 10 rows \(10.0%\) cannot be used; 5% are allowed.*max_skipped=0.11"):
        account_of(data, sentence)
    data = Data(train=data.train, evaluate=data.evaluate, max_skipped=0.1)
    counts = getattr(account_of(data, sentence), part)
    assert counts.skipped == {"response.empty": 1}


def test_held_out_rows_count_with_their_file(tmp_path: Path, sentence: PreTrainedTokenizerBase) -> None:
    data = Data(train=write(tmp_path / "rows.jsonl", [*GOOD, ONLY_END]), holdout=0.5)
    with pytest.raises(UserError, match="1 of 10 rows"):
        account_of(data, sentence)


def test_rows_too_long_do_not_count(tmp_path: Path, sentence: PreTrainedTokenizerBase) -> None:
    long = ("question", " a good one" * 999, " a bad one")
    data = Data(train=write(tmp_path / "rows.jsonl", [*GOOD, long, long]))
    account = account_of(data, sentence).train
    assert (account.read, account.kept, account.skipped) == (11, 9, {"too_long": 2})


def test_no_row_left_to_measure_on(tmp_path: Path, sentence: PreTrainedTokenizerBase) -> None:
    long = write(tmp_path / "long.jsonl", [("question", " a good one" * 999, " a bad one")])
    data = Data(train=write(tmp_path / "rows.jsonl", GOOD), evaluate=long)
    with pytest.raises(UserError, match=r"data.evaluate: no row is left to measure on \(1 x too_long\)"):
        account_of(data, sentence)


def test_prompts_that_are_trained_on_too_are_told(tmp_path: Path) -> None:
    data = Data(train=write(tmp_path / "a.jsonl", GOOD),
                evaluate=write(tmp_path / "b.jsonl", [*GOOD[:2], ("new", " y", " z")]))  # fmt: skip
    notes = read_rows(data).readings["evaluate"].notes
    assert [(note.reason, note.location[-9:]) for note in notes] == [("prompt.trained", "b.jsonl:1")]
    assert "2 rows" in notes[0].message


ASK, SAY = {"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}


@pytest.mark.parametrize("turns", ["all", "last"])
def test_replies_before_a_last_question_are_learned_from(turns: str, sentence: PreTrainedTokenizerBase) -> None:
    rows = [{"messages": [ASK, SAY, ASK, SAY]}, {"messages": [ASK, SAY, ASK, SAY, ASK]}, {"messages": [ASK]}]
    data = Data(train=rows, turns=turns, max_skipped=0.5)  # type: ignore[arg-type]
    run = Run(model=Model(path=tiny(), tokenizer=sentence), data=data)
    dataset = tokenize_rows(run, read_rows(data))
    whole, shortened = dataset.train
    assert [turn.ids.tolist() for turn in whole.turns[0]] == [turn.ids.tolist() for turn in shortened.turns[0]]
    assert whole.prompt.tolist() == shortened.prompt.tolist()
    assert dataset.account.train.skipped == {"response.none": 1}
    assert [note.reason for note in dataset.tokenized["train"].notes].count("turn.unanswered") == 1


def test_a_long_text_may_be_split(sentence: PreTrainedTokenizerBase) -> None:
    rows = [{"text": "the cat " * 40}, {"text": "the cat"}, {"prompt": "the cat " * 40, "completion": "x"}]
    texts, pair = Data(train=rows[:2], too_long="split", max_tokens=16), Data(train=rows[2:], max_tokens=16)
    run = Run(model=Model(path=tiny(), tokenizer=sentence), data=texts)
    *pieces, short = (dataset := tokenize_rows(run, read_rows(texts))).train
    whole = sentence(rows[0]["text"])["input_ids"] + [sentence.eos_token_id]
    assert [id_ for piece in pieces for id_ in piece.responses[0]] == whole[1:]
    assert all(len(piece.prompt) + len(piece.responses[0]) <= 16 for piece in pieces)
    assert [piece.prompt.tolist() for piece in pieces[1:]] == [[before.responses[0][-1]] for before in pieces[:-1]]
    assert (dataset.account.train.read, dataset.account.train.kept) == (2, 2)
    assert len({piece.id for piece in [*pieces, short]}) == len(pieces) + 1
    with pytest.raises(UserError, match="no row is left"):
        account_of(pair, sentence)

"""data.system: every conversation has one system text, its own or the default, and nothing else of it changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from preftune.config.load import load
from preftune.config.resolve import resolve
from preftune.errors import UserError
from preftune.rows.config import Data
from preftune.rows.row import Message, Row, shared_by
from preftune.rows.split import Rows, read_rows

DEFAULT = "Be brief."
Said = list[tuple[str, str]]


def turns(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in said]


def demo(number: int, *before: tuple[str, str]) -> dict[str, object]:
    return {"messages": turns(*before, ("user", f"question {number}"), ("assistant", "answer"))}


def rows_of(rows: Sequence[dict[str, object]], **keys: object) -> Rows:
    return read_rows(Data(train=list(rows), system=DEFAULT, **keys))


def prompt_of(row: Row) -> Said:
    return [(turn.role, turn.content) for turn in row.prompt if isinstance(turn, Message)]


ASKED = ("user", "question 1")
FORMS: dict[str, tuple[dict[str, object], Said]] = {
    "messages": (demo(1), [("system", DEFAULT), ASKED]),
    "a system turn": (demo(1, ("system", "Rhyme.")), [("system", "Rhyme."), ASKED]),
    "an empty one": (demo(1, ("system", "")), [("system", ""), ASKED]),
    "a developer": (demo(1, ("developer", "Rhyme.")), [("developer", "Rhyme."), ASKED]),
    "a key": ({**demo(1), "system": "Rhyme."}, [("system", "Rhyme."), ASKED]),
    "an empty key": ({**demo(1), "system": ""}, [("system", DEFAULT), ASKED]),
    "an instruction": ({"instruction": "question 1", "output": "answer"}, [("system", DEFAULT), ASKED]),
    "a pair": (
        {"prompt": turns(ASKED), "chosen": turns(("assistant", "a")), "rejected": turns(("assistant", "b"))},
        [("system", DEFAULT), ASKED],
    ),
    "a transcript": (
        {"chosen": "\n\nHuman: question 1\n\nAssistant: a", "rejected": "\n\nHuman: question 1\n\nAssistant: b"},
        [("system", DEFAULT), ASKED],
    ),
    "a task": ({"prompt": turns(ASKED)}, [("system", DEFAULT), ASKED]),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_row_wins(form: str) -> None:
    row, expected = FORMS[form]
    rows = rows_of([row])
    assert prompt_of(rows.train[0]) == expected
    own = [note for note in rows.readings["train"].notes if note.reason == "system.own"]
    assert bool(own) == (expected[0] != ("system", DEFAULT))


def test_it_stands_behind_what_the_template_is_told() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    rows = rows_of([{**demo(1), "tools": [tool]}])
    assert [turn.role for turn in rows.train[0].prompt if isinstance(turn, Message)] == ["tools", "system", "user"]


@pytest.mark.parametrize("row", [{"prompt": "p", "completion": "c"}, {"text": "all of it"}])
def test_plain_text_has_no_place_for_it(row: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"rows:1: 1 of 1 rows are plain text"):
        rows_of([row])


def test_what_is_held_out_does_not_depend_on_it() -> None:
    rows = [demo(number) for number in range(40)]
    without = read_rows(Data(train=rows, holdout=0.25))
    held_out = [row.place for row in rows_of(rows, holdout=0.25).evaluate]
    assert held_out == [row.place for row in without.evaluate]


def test_a_row_that_says_the_same_has_the_same_prompt() -> None:
    """Else one of the two could be trained on and the other be held out."""
    rows = [demo(number, *before) for number in range(20) for before in ([("system", DEFAULT)], [])]
    split = rows_of(rows, holdout=0.3)
    assert len(split.evaluate) == 12
    assert not {shared_by(row) for row in split.train} & {shared_by(row) for row in split.evaluate}
    measured = read_rows(Data(train=rows[:1], evaluate=rows[1:2], system=DEFAULT)).readings["evaluate"]
    assert "prompt.trained" in {note.reason for note in measured.notes}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.default_system=x", "Here it is data.system"),
        ("system_prompt=x", "Here it is data.system"),
        ("data.drop_system_message=true", "A system text of a row stays"),
    ],
)
def test_other_words_are_answered(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(load(None, [word]))


def test_a_blank_text_has_no_effect() -> None:
    with pytest.raises(UserError, match=r"data\.system: the text is blank"):
        read_rows(Data(train=[demo(1)], system=" \n"))


def test_rows_of_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(demo(1)) + "\n")
    rows = read_rows(Data(train=str(tmp_path / "a.jsonl"), system=DEFAULT))
    assert prompt_of(rows.train[0])[0] == ("system", DEFAULT)

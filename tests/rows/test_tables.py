"""Tables of cells: each kind of cell is the text that stands there, or is refused by name; nothing is guessed."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from preftune.errors import UserError
from preftune.rows.read import Reading, read
from preftune.rows.row import Demo, Message, Pair, Rating, Row, Task

AS_WRITTEN = [
    "007",
    "1e5",
    "NA",
    "null",
    "None",
    "True",
    "nan",
    "1.50",
    " x ",
    "a,b",
    'say "hi"',
    "two\nlines",
    "12",
    "-",
]


def table(path: Path, text: str) -> Reading:
    path.write_bytes(text.encode())
    return read(str(path))


def rows(path: Path, *lines: list[str]) -> list[Row]:
    with path.open("w", newline="") as stream:
        csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(lines)
    return read(str(path)).rows


@pytest.mark.parametrize("cell", AS_WRITTEN)
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_cell_stays_as_it_is_written(tmp_path: Path, cell: str, ending: str) -> None:
    (row,) = rows(tmp_path / f"a{ending}", ["prompt", "completion"], [cell, f"{cell}!"])
    assert isinstance(row, Demo)
    assert (row.prompt, row.response) == (cell, f"{cell}!")


@pytest.mark.parametrize("answer", ["007", "18.50", "1e5", "True"])
def test_an_answer_is_what_a_verifier_compares(tmp_path: Path, answer: str) -> None:
    (row,) = rows(tmp_path / "a.csv", ["prompt", "ground_truth"], ["p", answer])
    assert isinstance(row, Task)
    assert row.answer == answer


@pytest.mark.parametrize(
    ("cell", "good"), [("True", True), ("FALSE", False), ("1", True), ("0", False), ("1.0", True), ("yes", True)]
)
def test_labels_are_read_from_text(tmp_path: Path, cell: str, good: bool) -> None:
    (row,) = rows(tmp_path / "a.csv", ["prompt", "completion", "label"], ["7", "8", cell])
    assert isinstance(row, Rating)
    assert row.good is good


@pytest.mark.parametrize("cell", ["NA", "null", "2", "maybe", "0.5"])
def test_a_label_that_is_none_is_refused_by_name(tmp_path: Path, cell: str) -> None:
    with pytest.raises(UserError, match=rf'a\.csv:2: "label" is the text \'{cell}\', needs true or false'):
        rows(tmp_path / "a.csv", ["prompt", "completion", "label"], ["p", "c", cell])


@pytest.mark.parametrize("cell", ["NA", "nan", "inf", "1,5"])
def test_a_score_that_is_none_is_refused_by_name(tmp_path: Path, cell: str) -> None:
    with pytest.raises(UserError, match=r'a\.csv:2: "score" is the text .*, needs a finite number'):
        rows(tmp_path / "a.csv", ["prompt", "completion", "score"], ["p", "c", cell])


def test_numbers_are_read_where_numbers_are_meant(tmp_path: Path) -> None:
    header = ["prompt", "chosen", "rejected", "score_chosen", "score_rejected", "weight", "id"]
    (row,) = rows(tmp_path / "a.csv", header, ["p", "c", "r", "1e1", "-.5", "2", "007"])
    assert isinstance(row, Pair)
    assert (row.scores, row.weight, row.id) == ((10.0, -0.5), 2.0, "007")


@pytest.mark.parametrize(("cell", "chosen"), [("1", "x"), ("2.0", "y"), ("response_2", "y")])
def test_a_verdict_is_read_from_text(tmp_path: Path, cell: str, chosen: str) -> None:
    header = ["prompt", "response_1", "response_2", "preference"]
    (row,) = rows(tmp_path / "a.csv", header, ["p", "x", "y", cell])
    assert isinstance(row, Pair)
    assert row.chosen == chosen


def test_an_empty_cell_is_absent(tmp_path: Path) -> None:
    header = ["prompt", "completion", "label", "score", "system"]
    path = tmp_path / "a.csv"
    path.write_text(f'{",".join(header)}\np,c,1,,\np,d,,,""\np,,0,,\nq,e,1,,\n')
    reading = read(str(path))
    assert [(str(row.place), row.good, row.score) for row in reading.rows] == [(f"{path}:2", True, None),
                                                                               (f"{path}:5", True, None)]  # fmt: skip
    assert [problem.reason for problem in reading.skipped] == ["row.hole", "row.hole"]


@pytest.mark.parametrize(("name", "cell"), [("helpful", "3"), ("verdict2", "True"), ("grade", "0.5")])
def test_an_unread_judgement_is_refused_as_it_is_in_json(tmp_path: Path, name: str, cell: str) -> None:
    with pytest.raises(UserError, match=rf'"{name}" \(a judgement\)'):
        rows(tmp_path / "a.csv", ["prompt", "completion", name], ["p", "c", cell])
    (tmp_path / "b.csv").write_text(f"prompt,completion,{name}\np,c,{cell}\n")
    assert len(read(str(tmp_path / "b.csv"), columns={name: ""}).rows) == 1


def test_a_column_may_be_renamed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion,safe\n7,8,False\n")
    (row,) = read(str(tmp_path / "a.csv"), columns={"safe": "label"}).rows
    assert isinstance(row, Rating)
    assert (row.prompt, row.good) == ("7", False)


def test_conversations_stand_in_a_cell_as_json_or_as_python_prints_them(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "it's"}, {"role": "assistant", "content": "a"}]
    for text in (json.dumps(turns), str(turns)):
        (row,) = rows(tmp_path / "a.csv", ["messages"], [text])
        assert row.prompt == (Message("user", "it's"),)


def test_what_spreadsheets_and_pandas_write_is_read(tmp_path: Path) -> None:
    for number, text in enumerate((
        "\ufeffprompt,completion\r\np,c\r\n",
        ",prompt,completion\n0,p,c\n",
        "prompt , completion\np,c",
        "prompt,completion\n\np,c\n\n",
    )):  # fmt: skip
        (row,) = table(tmp_path / f"{number}.csv", text).rows
        assert isinstance(row, Demo)
        assert (row.prompt, row.response) == ("p", "c")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"prompt,completion\np,c\n"))
    assert len(read(str(tmp_path / "a.csv.gz")).rows) == 1


def test_places_are_lines_of_the_file(tmp_path: Path) -> None:
    reading = table(tmp_path / "a.csv", 'prompt,completion\n"two\nlines",c\np,d\n')
    assert [row.place.line for row in reading.rows] == [2, 4]


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (row,) = rows(tmp_path / "a.csv", ["text"], ["word " * 100_000])
    assert isinstance(row, Demo)
    assert len(row.response) == 500_000
    assert csv.field_size_limit() == before


WRONG = {
    "ragged": ("prompt,completion\np,c,x\np,c\n", r"a\.csv:2: has 3 cells, and there are 2 columns"),
    "no name": ("prompt,,completion\np,1,c\n", r"a\.csv:1: column 2 has no name"),
    "twice": ("prompt,completion,prompt\np,c,q\n", r"a\.csv:1: two columns have the name 'prompt'"),
    "semicolons": ("prompt;completion\np;c\n", r"a\.csv:1: its cells are separated by ';'"),
    "open quote": ('prompt,completion\np,"c\n', r"a\.csv:2: is no table of cells: unexpected end of data"),
    "a stray quote": ('prompt,completion\np,"c"d\n', r"a\.csv:2: is no table of cells"),
    "no header": ("p,c\nq,d\n", r"a\.csv:2: its keys are no known form of preferences: p, c"),
    "a header alone": ("prompt,completion\n", r"a\.csv: holds no rows"),
    "empty": ("", r"a\.csv: is empty"),
    "a list": ("prompt,responses,ranks\np,\"['a', 'b']\",\"[1, 2]\"\n", r'"responses" is the text .*, needs a list'),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    text, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        table(tmp_path / "a.csv", text)


def test_bytes_of_another_encoding_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("prompt,completion\né,c\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"a\.csv: is not UTF-8 text"):
        read(str(tmp_path / "a.csv"))


def test_a_text_file_says_how_rows_are_made_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"whether a line or the whole file is a text\. Write rows with the key text"):
        read(str(tmp_path / "a.txt"))

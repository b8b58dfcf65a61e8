"""Shares of files: which prompts are taken, what is counted and told, and what stays on one side."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from preftune.config.load import load
from preftune.config.resolve import resolve
from preftune.errors import UserError
from preftune.rows.account import by_reason
from preftune.rows.config import Data
from preftune.rows.messages import up_to_last_reply
from preftune.rows.row import shared_by
from preftune.rows.shares import SHARE
from preftune.rows.split import Rows, read_rows


def pairs(path: Path, count: int, first: int = 0, of_prompt: int = 2) -> str:
    """A file with `of_prompt` rows to each of `count` prompts."""
    lines = [
        {"prompt": f"prompt {number}", "chosen": f" yes {number} {row}", "rejected": f" no {row}"}
        for number in range(first, first + count)
        for row in range(of_prompt)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    return pairs(tmp_path / "a.jsonl", 40), pairs(tmp_path / "b.jsonl", 10, first=100)


def rows_of(files: tuple[str, ...], *shares: float, **keys: object) -> Rows:
    return read_rows(Data(train=files, shares=shares or None, **keys))


def times(rows: Rows, file: str) -> Counter[object]:
    """How often an epoch takes the rows of each prompt of a file."""
    taken: Counter[object] = Counter()
    for row in rows.train:
        taken[shared_by(row)] += row.times * (row.place.file == file)
    return +taken


@pytest.mark.parametrize(("share", "counts"), [(0.5, {2: 20}), (1, {2: 40}), (2, {4: 40}), (2.25, {4: 30, 6: 10})])
def test_a_share_is_of_prompts_with_all_their_rows(
    files: tuple[str, str], share: float, counts: dict[int, int]
) -> None:
    rows = rows_of(files, share, 1)
    assert Counter(times(rows, files[0]).values()) == counts
    assert Counter(times(rows, files[1]).values()) == {2: 10}


def test_a_larger_share_holds_the_smaller_whatever_the_order(files: tuple[str, str], tmp_path: Path) -> None:
    few, more = (set(times(rows_of(files, share, 1), files[0])) for share in (0.1, 0.3))
    assert len(few) == 4 < len(more)
    assert few < more
    lines = Path(files[0]).read_text().splitlines(keepends=True)
    (tmp_path / "turned.jsonl").write_text("".join(lines[::-1]))
    turned = (str(tmp_path / "turned.jsonl"), files[1])
    assert set(times(rows_of(turned, 0.1, 1), turned[0])) == few
    assert len(times(rows_of(files, 1e-9, 1), files[0])) == 1


def test_what_is_left_out_is_counted_and_told(files: tuple[str, str]) -> None:
    reading = rows_of(files, 0.5, 2).readings["train"]
    assert {reason: len(rows) for reason, rows in by_reason(reading.skipped).items()} == {SHARE: 40}
    assert reading.read == 100
    (note,) = [note for note in reading.notes if note.location == "data.shares"]
    a, b = files
    assert note.message == f"an epoch takes 40 of 80 rows of {a} (50%); 20 of 20 rows of {b}, 40 times in all (50%)."


def test_remarks_are_on_what_is_taken(tmp_path: Path) -> None:
    file = pairs(tmp_path / "a.jsonl", 4, of_prompt=1)
    Path(file).write_text(Path(file).read_text() * 2)
    assert "row.duplicate" in {note.reason for note in rows_of((file,), 0.5).readings["train"].notes}
    assert not {note.reason for note in rows_of((pairs(tmp_path / "b.jsonl", 4),), 3).readings["train"].notes} - {""}


def test_no_prompt_is_on_both_sides_and_none_is_measured_twice(files: tuple[str, str]) -> None:
    rows = rows_of(files, 0.5, 3, holdout=0.25)
    trained, held_out = ({shared_by(row) for row in part} for part in (rows.train, rows.evaluate))
    assert not trained & held_out
    assert len(trained) + len(held_out) == 30
    assert len(rows.evaluate) == 2 * len(held_out)


def test_what_is_held_out_has_nothing_to_do_with_shares(tmp_path: Path) -> None:
    """The prompts of the smallest hashes, once taken, would all be of the file whose share is small."""
    file = pairs(tmp_path / "a.jsonl", 400, of_prompt=1)
    every = {shared_by(row) for row in rows_of((file,), holdout=0.5).evaluate}
    some = {shared_by(row) for row in rows_of((file,), 0.5).train}
    assert 70 < len(every & some) < 130


def test_rows_in_python_are_one_file() -> None:
    given = [{"prompt": f"p{k}", "completion": " b"} for k in range(10)]
    assert len(read_rows(Data(train=given, shares=[0.3])).train) == 3
    with pytest.raises(UserError, match=r"has 2 numbers for the rows given in Python of data.train"):
        read_rows(Data(train=given, shares=(0.3, 1)))


WRONG = {
    "too few": (("a", "b"), (1,), "data.shares: has 1 number for the 2 files"),
    "none": (("a",), (), "data.shares: has 0 numbers for the 1 file of"),
    "twice": (("a", "a"), (1, 0.5), "data.train: a is named twice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_shares_are_refused_before_a_file_is_read(name: str) -> None:
    train, shares, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        read_rows(Data(train=train, shares=shares))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.shares=[0]", "must be a number > 0"),
        ("data.shares=[1000]", "must be a number <= 100"),
        ('data.shares={"a.jsonl": 0.5, "b.jsonl": 2}', r"must be a list, got a table\. Write data\.shares=\[0\.5, 2\]"),
        ("data.shares=0.5", r"must be a list, got a number\. Write data\.shares=\[0\.5\]"),
        ("data.interleave_probs=[0.5]", "Here it is data.shares"),
        ("data.mix_strategy=concat", "data.shares says how much of each"),
    ],
)
def test_other_values_are_answered(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(None, [word])


def test_a_task_is_not_drawn_for_twice() -> None:
    words = ["model.path=m", "objective=rloo", "rollout.responses=2", "reward.verify=exact", "data.train=a"]
    resolve(load(None, [*words, "data.shares=[0.5]"]))
    with pytest.raises(UserError, match=r"data.shares: equal prompts are one task"):
        resolve(load(None, [*words, "data.shares=[2]"]))


def test_unusable_rows_are_counted_among_those_taken(tmp_path: Path) -> None:
    file = pairs(tmp_path / "a.jsonl", 20, of_prompt=1)
    with Path(file).open("a") as stream:
        stream.writelines('{"prompt": "p", "chosen": " x", "rejected": " x"}\n' for _ in range(2))
    with pytest.raises(UserError, match=r"2 of 22 rows \(9.1%\)"):
        rows_of((file,), 0.5)
    assert len(rows_of((file,), 0.5, max_skipped=0.1).train) == 10


def test_a_conversation_without_its_last_question_is_taken_as_often() -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    (row,) = read_rows(Data(train=[{"messages": turns}], shares=(3,))).train
    assert up_to_last_reply(row).times == 3


def test_a_pattern_is_one_entry_of_all_its_files(tmp_path: Path) -> None:
    for number in range(4):
        pairs(tmp_path / f"part{number}.jsonl", 10, first=10 * number)
    pattern = str(tmp_path / "part*.jsonl")
    rows = rows_of((pattern, pairs(tmp_path / "other.jsonl", 10, first=100)), 0.25, 2)
    assert len({shared_by(row) for row in rows.train if "part" in row.place.file}) == 10
    assert f"20 of 80 rows of {pattern} (33%)" in str(rows.readings["train"].notes)
    with pytest.raises(UserError, match=r"part0\.jsonl is named twice"):
        rows_of((pattern, str(tmp_path / "part0.jsonl")), 0.25, 2)


def test_files_without_a_usable_row_are_refused_as_ever(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "chosen": " x", "rejected": " x"}\n')
    with pytest.raises(UserError, match=r"1 of 1 rows \(100\.0%\) cannot be used"):
        rows_of((str(tmp_path / "a.jsonl"),), 0.5)

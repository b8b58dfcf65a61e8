"""The account of what was read, the rule on unusable rows, held-out prompts, and lengths."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preftune.errors import Problem, UserError
from preftune.rows.account import Account, refuse_too_many
from preftune.rows.read import read
from preftune.rows.row import Demo, Kind, Message, Pair, Place, Ranking
from preftune.rows.split import holdout
from preftune.tokens.groups import TokenGroup, with_lengths

PLACE = Place("made", 1)
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


def pairs(*responses: tuple[str, str]) -> str:
    return "".join(
        json.dumps({"prompt": f"p{k}", "chosen": a, "rejected": b}) + "\n" for k, (a, b) in enumerate(responses)
    )


def test_places_are_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("\n" + pairs(("a", "b")) + "\n\n" + pairs(("", "b"), ("c", "d")))
    reading = read("rows.jsonl")
    assert [str(row.place) for row in reading.rows] == ["rows.jsonl:2", "rows.jsonl:6"]
    assert [problem.location for problem in reading.skipped] == ["rows.jsonl:5"]
    assert reading.read == 3


WORDS = st.sampled_from(["", " ", "a", "a ", "b", "\u200b", "ä", "a\u0308", "<b>", "\x00"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=20))
def test_every_row_is_either_kept_or_accounted_for(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    (tmp_path / "rows.jsonl").write_text(pairs(*rows))
    reading = read(str(tmp_path / "rows.jsonl"))
    lines = [row.place.line for row in reading.rows] + [int(p.location.rpartition(":")[2]) for p in reading.skipped]
    assert sorted(lines) == list(range(1, len(rows) + 1))
    assert reading.read == len(rows)
    for row in reading.rows:
        assert isinstance(row, Pair)
        assert (row.chosen, row.rejected) == rows[row.place.line - 1]
        assert row.chosen != row.rejected


class TestTooMany:
    def refuse(self, skipped: int, kept: int, allowed: float) -> None:
        problems = [Problem("a response is empty.", f"f:{k}", reason="response.empty") for k in range(skipped)]
        refuse_too_many(problems, skipped + kept, ["f"], allowed)

    @pytest.mark.parametrize(("skipped", "kept", "allowed"), [(5, 95, 0.05), (0, 1, 0.0), (98, 2, 0.98)])
    def test_as_many_as_allowed_and_not_one_more(self, skipped: int, kept: int, allowed: float) -> None:
        self.refuse(skipped, kept, allowed)
        with pytest.raises(UserError, match="are allowed"):
            self.refuse(skipped + 1, kept - 1 or 1, allowed)

    def test_nothing_left_is_refused_whatever_is_allowed(self) -> None:
        self.refuse(99, 1, 1.0)
        with pytest.raises(UserError, match=r"99 of 99 rows.*none is left"):
            self.refuse(99, 0, 1.0)

    def test_refused_with_counts_places_and_the_key(self) -> None:
        with pytest.raises(UserError) as caught:
            self.refuse(6, 94, 0.05)
        assert "f: 6 of 100 rows (6.0%) cannot be used; 5% are allowed." in str(caught.value)
        assert "data.max_skipped=0.07" in str(caught.value)
        assert "f:0: response.empty: a response is empty (6 rows; also f:1, f:2, ...)." in str(caught.value)

    def test_the_share_it_proposes_is_enough(self) -> None:
        for skipped in range(1, 40):
            with pytest.raises(UserError) as caught:
                self.refuse(skipped, 100, 0.0)
            self.refuse(skipped, 100, float(caught.value.problems[0].hint.rpartition("=")[2].rstrip(".")))


class TestHoldout:
    rows = tuple(Demo(prompt=f"p{k % 40}", response=str(k), place=Place("f", k)) for k in range(100))

    def test_no_prompt_crosses_and_no_row_is_lost(self) -> None:
        train, held = holdout(self.rows, 0.25)
        assert not {row.prompt for row in train} & {row.prompt for row in held}
        assert sorted(row.place.line for row in [*train, *held]) == list(range(100))
        assert len({row.prompt for row in held}) == 10
        assert [row.place.line for row in train] == sorted(row.place.line for row in train)

    def test_order_does_not_matter(self) -> None:
        chosen = {row.prompt for row in holdout(self.rows, 0.25)[1]}
        assert {row.prompt for row in holdout(self.rows[::-1], 0.25)[1]} == chosen

    @pytest.mark.parametrize("share", [0.001, 0.999])
    def test_both_parts_have_a_prompt(self, share: float) -> None:
        assert all(holdout(self.rows[:2], share))

    def test_rows_without_a_prompt_are_each_their_own(self) -> None:
        texts = [Demo(prompt="", response=f"t{k % 8}", rendered=True, place=Place("made", k)) for k in range(16)]
        train, held = holdout(texts, 0.25)
        assert (len(train), len(held)) == (12, 4)
        assert not {row.response for row in train} & {row.response for row in held}

    def test_one_prompt_cannot_be_split(self) -> None:
        with pytest.raises(UserError, match="one prompt"):
            holdout([self.rows[0]] * 5, 0.5)

    def test_conversations(self) -> None:
        said = [
            Demo(prompt=(Message("user", f"q{k}"),), response=(Message("assistant", "a"),), place=PLACE)
            for k in range(4)
        ]
        assert [len(part) for part in holdout(said, 0.5)] == [2, 2]


def group(
    prompt: int, *responses: int, kind: Kind = "pair", ranks: tuple[int, ...] = (1, 2), good: bool = True
) -> TokenGroup:
    first, *rest = (np.zeros(n, np.int32) for n in (prompt, *responses))
    return TokenGroup(prompt=first, responses=tuple(rest), place=PLACE, kind=kind, ranks=ranks, good=good)


def test_lengths() -> None:
    groups = [group(10, 4, 2), group(20, 3, 3), group(5, 9, 2, 7, kind="ranking", ranks=(2, 1, 2))]
    more = [group(1, 6, kind="rating", ranks=(1,), good=False), group(1, 8, kind="demo", ranks=(1,))]
    account = with_lengths(Account(max_tokens=9), [*groups, *more])
    assert (account.chosen_longer, account.max_tokens) == (0.5, 9)
    assert account.tokens_naive == (20 + 6) + (40 + 6) + (15 + 18) + 7 + 9
    assert account.tokens_distinct == 16 + 26 + 23 + 7 + 9
    prompt, chosen, rejected = (account.lengths[name] for name in ("prompt", "chosen", "rejected"))
    assert prompt.max == 20
    assert chosen.median == 3.5  # 4, 3, 2, 8
    assert [(b.to, b.count) for b in rejected.bins] == [(8, 4), (16, 1)]
    assert msgspec.json.decode(msgspec.json.encode(account), type=Account) == account


def test_lengths_without_pairs_or_groups() -> None:
    assert with_lengths(Account(), []).lengths == {}
    assert with_lengths(Account(), [group(1, 2, kind="demo", ranks=(1,))]).chosen_longer is None


def test_reading_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(pairs(("a", "b")))
    script = (
        "import sys\nfrom preftune.rows.read import read\nfrom preftune.tokens import tokenizer, tokenize, groups\n"
        "read(sys.argv[1])\nheavy = {'torch', 'transformers', 'tokenizers', 'pyarrow', 'datasets'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.check_output([sys.executable, "-c", script, str(tmp_path / "rows.jsonl")], text=True)
    assert done.strip() == "[]"


def test_rows_are_hashable_values() -> None:
    row = Ranking(prompt="a", responses=("b", "c"), ranks=(1, 2), place=PLACE)
    assert len({row, Ranking(prompt="a", responses=("b", "c"), ranks=(1, 2), place=PLACE)}) == 1


TASK_ONLY = "answer (read only where [rollout] draws responses)."


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (PAIR | {"answer": "d"}, TASK_ONLY),
        ({"prompt": "a", "completion": "b", "answer": "d"}, TASK_ONLY),
        (PAIR | {"wieght": 1, "source": "x"}, 'wieght (did you mean "weight"?), source.'),
        (PAIR | {"scor_chosen": 1, "score_rejected": 0}, 'scor_chosen (did you mean "score_chosen"?), score_rejected.'),
        (PAIR | {"prompt_id": "p"}, "prompt_id."),
    ],
)
def test_a_field_is_taken_for_another_only_where_that_would_be_read(row: dict[str, object], said: str) -> None:
    assert [note.message for note in read([row]).notes] == [f"fields that are not used: {said}"]


BETTER = {"better": "d"}


@pytest.mark.parametrize("row", [{**PAIR, **BETTER}, {**BETTER, **PAIR}])
def test_a_key_that_would_be_two_by_columns_is_refused_in_any_order(row: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r'"chosen" and "better" would both be "chosen" .* out: \{"chosen" = ""\}'):
        read([row, row], columns={"better": "chosen"})
    (pair,) = read([row], columns={"better": "chosen", "chosen": ""}).rows
    assert isinstance(pair, Pair)
    assert pair.chosen == "d"


def test_two_columns_of_one_name_are_refused() -> None:
    row = {"prompt": "a", "x": "b", "y": "c", "rejected": "d"}
    with pytest.raises(UserError, match='"x" and "y" would both be "chosen"'):
        read([row], columns={"x": "chosen", "y": "chosen"})
    rows = [row | {"y": None}, row | {"x": None}]  # null is absent, in whatever order
    assert [
        pair.chosen for pair in read(rows, columns={"x": "chosen", "y": "chosen"}).rows if isinstance(pair, Pair)
    ] == ["b", "c"]


@pytest.mark.parametrize(
    ("columns", "sides"),
    [
        ({"chosen": "chosen"}, ("b", "c")),
        ({"chosen": "rejected", "rejected": "chosen"}, ("c", "b")),
        ({"more": ""}, ("b", "c")),
        ({"more": None}, ("b", "c")),
    ],
)
def test_columns_rename_swap_and_leave_out(columns: dict[str, str | None], sides: tuple[str, str]) -> None:
    (pair,) = read([{**PAIR, "more": 1}], columns=columns).rows
    assert isinstance(pair, Pair)
    assert (pair.chosen, pair.rejected) == sides


@pytest.mark.parametrize(
    ("ranks", "scores", "contradicts"),
    [
        ([1, 2, 3], [3, 2, 1], False),
        ([1, 2, 3], [1, 2, 3], True),
        ([3, 1, 2], [2, 3, 2.5], False),
        ([1, 3, 2], [3, 2, 1], True),
        ([1, 2, 2], [3, 1, 2], False),
        ([1, 2, 3], [2, 2, 2], False),
        ([1, 1, 2], [1, 3, 2], True),
    ],
)
def test_ranks_that_contradict_scores_are_told(ranks: list[int], scores: list[float], contradicts: bool) -> None:
    reading = read([{"prompt": "a", "responses": ["x", "y", "z"], "ranks": ranks, "scores": scores}])
    assert [note.reason for note in reading.notes] == ["ranking.scores"] * contradicts


def test_a_pattern_is_the_files_that_it_fits_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("b.jsonl", "a.jsonl", "inner/c.jsonl", "d.txt", "a[1].jsonl"):
        (tmp_path / name).write_text(json.dumps({"prompt": name, "completion": "x"}) + "\n")

    def prompts(name: str) -> list[object]:
        return [row.prompt for row in read(str(tmp_path / name)).rows]

    assert prompts("[ab].jsonl") == ["a.jsonl", "b.jsonl"]
    assert prompts("**/*.jsonl") == ["a.jsonl", "a[1].jsonl", "b.jsonl", "inner/c.jsonl"]
    assert prompts("a[1].jsonl") == ["a[1].jsonl"]  # a file that is called so
    reading = read(str(tmp_path / "?.jsonl"))
    assert [Path(name).name for name in reading.files] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(UserError, match=r"\*\.jsnol: no file fits this pattern"):
        read([str(tmp_path / "a.jsonl"), str(tmp_path / "*.jsnol")])
    (tmp_path / "b.jsonl").write_text("{")
    (tmp_path / "a.jsonl").write_text("[")
    with pytest.raises(UserError) as refused:
        read(str(tmp_path / "[ab].jsonl"))
    assert len(refused.value.problems) == 2

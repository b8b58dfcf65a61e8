"""Bad and odd input files, one case each: E refused with its place, S left out by reason, W kept and told, O right.

Cases that need a tokenizer (T, J, C10, C19, C22 to C24) stand in tests/data/test_tokens.py.
"""

from __future__ import annotations

import gzip
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from preftune.errors import UserError
from preftune.rows.read import read
from preftune.rows.row import Pair, Rating, responses

GOOD = {"prompt": "a question", "chosen": "a good response", "rejected": "a bad response"}


def row(**changes: object) -> str:
    """One good pair with changes; a field that becomes `...` is left out."""
    return json.dumps(
        {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}, ensure_ascii=False
    )


def file(*lines: str) -> bytes:
    return ("\n".join([row(), *lines]) + "\n").encode()


def turns(*said: str) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(said)
    return [{"role": roles[k], "content": text} for k, text in enumerate(said)][: len(said)]


def whole(chosen: list[dict[str, str]], rejected: list[dict[str, str]]) -> str:
    return json.dumps({"chosen": chosen, "rejected": rejected})


class Case(NamedTuple):
    """want: texts of the error (E), reasons (S, W), or the number of rows (O)."""

    id: str
    expected: str
    content: bytes
    want: tuple[str, ...] | int
    name: str = "rows.jsonl"


FILES = [
    Case("F2 empty", "E", b"", ("rows.jsonl: is empty",)),
    Case("F3 blank lines", "E", b"\n \n\n", ("holds no rows",)),
    Case("F6 byte order mark", "O", b"\xef\xbb\xbf" + file(), 1),
    Case("F6 byte order mark before a list", "O", b"\xef\xbb\xbf[" + row().encode() + b"]", 1, "rows.json"),
    Case("F7 UTF-16", "E", file().decode().encode("utf-16"), ("UTF-16", "iconv")),
    Case("F7 UTF-16 without mark", "E", file().decode().encode("utf-16-le"), ("UTF-16",)),
    Case("F8 Latin-1", "E", file(row(chosen="caf\u00e9")).decode().encode("latin-1"), ("rows.jsonl:2: byte ", "iconv")),
    Case("F9 CRLF", "O", file(row(chosen="b")).replace(b"\n", b"\r\n"), 2),
    Case("F10 no newline at the end", "O", file().rstrip(), 1),
    Case(
        "F11 cut in the last line",
        "E",
        file(row(prompt="b"))[:-30],
        ("rows.jsonl:2: the file ends inside of this line",),
    ),
    Case("F12 list in .jsonl", "O", f"[{row()},\n{row(chosen='c')}]".encode(), 2),
    Case("F12 lines in .json", "O", file(row(chosen="c")), 2, "rows.json"),
    Case("F12 list cut short", "E", f"[{row()},\n".encode(), ("ends inside of its list",), "rows.json"),
    Case("F12 list with something after", "E", f"[{row()}] x".encode(), ("follows after the list",), "rows.json"),
    Case("F12 broken element", "E", f"[{row()},\n{{'a': 1}}]".encode(), ("rows.json:2: not JSON",), "rows.json"),
    Case(
        "F12 not objects", "E", f"[{row()}, 7]".encode(), ("rows.json:2: is a number (7), not an object",), "rows.json"
    ),
    Case("F13 pretty-printed", "E", json.dumps(GOOD, indent=1).encode(), ("over several lines", "jq -c")),
    Case("F13 later", "E", file() + json.dumps(GOOD, indent=1).encode(), ("rows.jsonl:2: an object goes over",)),
    Case("a page", "E", b"# Rows\n\nSome text.\n", ("README.md:1: is not JSON: no object begins",), "README.md"),
    Case("F14 gzip", "O", gzip.compress(file()), 1, "rows.jsonl.gz"),
    Case("F14 gzip by content", "O", gzip.compress(file()), 1),
    Case(
        "F14 gzip cut short", "E", gzip.compress(file(*[row(id=k) for k in range(99)]))[:-40], ("cut short or damaged",)
    ),
    Case("F14 zstd", "E", b"\x28\xb5\x2f\xfd" + b"x" * 50, ("zstd -d",), "rows.jsonl.zst"),
    Case("F15 gzip bomb", "E", gzip.compress(b" " * (70 * 2**20)), ("more than 200 times",)),
    Case("F24 endless line", "E", b"x" * (65 * 2**20), ("rows.jsonl:1: the line is longer than 64 MiB",)),
    Case("F15 gzip bomb in lines", "E", gzip.compress(b" \n" * (40 * 2**20)), ("more than 200 times",)),
    Case("F17 csv", "E", b"prompt,chosen,rejected\na,b,c\n", ("a form that is not read",), "rows.csv"),
    Case("F22 LFS pointer", "E", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", ("git lfs pull",)),
    Case("F23 HTML page", "E", b"<!DOCTYPE html><html></html>", ("HTML page",)),
    Case("F23 HTML page 2", "E", b"\n<html><body>404</body></html>", ("HTML page",)),
    Case("zip", "E", b"PK\x03\x04" + b"x" * 50, ("zip archive",), "rows.zip"),
    Case("single quotes", "E", b"{'prompt': 'a'}\n{'prompt': 'b'}\n", ("double quotes",)),
]
ROWS = [
    Case("R1 a list", "E", file("[1, 2]"), ("rows.jsonl:2: is a list, not an object",)),
    Case("R1 a text", "E", file('"x"'), ("rows.jsonl:2: is the text 'x'",)),
    Case("R2 no chosen", "E", file(row(chosen=...)), ('rows.jsonl:2: "chosen"', "is missing", "prompt, rejected")),
    Case("R3 no prompt", "E", (row(prompt=...) + "\n").encode(), ('rows.jsonl:1: "prompt" is missing',)),
    Case("R4 null", "E", file(row(chosen=None)), ('rows.jsonl:2: "chosen" is null, needs text or a list',)),
    Case("R5 number", "E", file(row(chosen=7)), ('"chosen" is a number (7)', "Quote it")),
    Case("R5 truth value", "E", file(row(rejected=True)), ('"rejected" is a truth value (true)',)),
    Case(
        "R6 key twice",
        "E",
        file('{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}'),
        (":2:", '"chosen" stands twice'),
    ),
    Case("R6 key twice in a list", "E", b'[{"a": 1, "a": 2}]', ('rows.json:1: the key "a" stands twice',), "rows.json"),
    Case(
        "R7 NaN",
        "E",
        file('{"prompt": "a", "chosen": "b", "rejected": "c", "weight": NaN}'),
        (":2: NaN is not a number",),
    ),
    Case(
        "R7 infinity by size",
        "E",
        file('{"prompt": "a", "chosen": "b", "rejected": "c", "weight": 1e999}'),
        ('"weight"', "finite"),
    ),
    Case("R8 deep", "E", file('{"a":' * 100_000), (":2: nested too deeply",)),
    Case(
        "R8 deeper than allowed",
        "E",
        file(row(extra=json.loads("[" * 70 + "]" * 70))),
        (":2: nested more than 64 deep",),
    ),
    Case(
        "R9 many digits",
        "E",
        file(row(id=...)[:-1] + ', "weight": ' + "9" * 5000 + "}"),
        (":2: a number has too many digits",),
    ),
    Case("R10 more fields", "W", file(row(prompt="b", source="x")), ("fields.extra",)),
    Case("R11 choosen", "E", (row(chosen=..., choosen="b") + "\n").encode(), ('Did you mean "chosen" by "choosen"?',)),
    Case(
        "R11 response_w",
        "E",
        b'{"prompt": "a", "response_w": "b", "response_l": "c"}\n',
        ('Did you mean "chosen" by "response_w"?',),
    ),
    Case("R11 promt", "E", (row(prompt=..., promt="b") + "\n").encode(), ('Did you mean "prompt" by "promt"?',)),
    Case("R12 two forms", "E", file('{"prompt": "a", "completion": "b"}'), (":2: has the form demos", "pairs at 1")),
    Case(
        "R13 type drifts late",
        "E",
        file(*[row(id=k) for k in range(3000)], row(chosen=["x"])),
        (":3002: chosen[0] is the text 'x'",),
    ),
    Case("R14 not a list", "E", b'{"messages": "hello"}\n', ('"messages" is a text, needs a list',)),
    Case("R15 no content", "E", file(row(chosen=[{"role": "assistant"}])), ("chosen[0].content is missing",)),
    Case("R15 no role", "E", file(row(chosen=[{"content": "x"}])), ("chosen[0].role is missing",)),
    Case(
        "R16 role",
        "E",
        file(row(chosen=[{"role": "asistant", "content": "x"}])),
        ("chosen[0].role", 'Did you mean "assistant"?'),
    ),
    Case("R17 user twice", "W", file(row(prompt=[*turns("a"), *turns("b")])), ("turn.order",)),
    Case(
        "R18 last is the user's",
        "S",
        (whole(turns("a", "b", "c"), turns("a", "b", "d")) + "\n").encode(),
        ("turn.last",),
    ),
    Case("R19 prompts differ", "S", (whole(turns("a", "b"), turns("x", "c")) + "\n").encode(), ("prompt.differs",)),
    Case(
        "R20 systems differ",
        "S",
        (
            whole(
                [{"role": "system", "content": "s"}, *turns("a", "b")],
                [{"role": "system", "content": "t"}, *turns("a", "c")],
            )
            + "\n"
        ).encode(),
        ("prompt.differs",),
    ),
    Case(
        "R21 image",
        "E",
        file(row(chosen=[{"role": "assistant", "content": [{"type": "image_url"}]}])),
        ("chosen[0].content[0] is image_url", "not supported"),
    ),
    Case(
        "R21 parts of text",
        "O",
        file(row(chosen=[{"role": "assistant", "content": [{"type": "text", "text": "x"}]}])),
        2,
    ),
    Case(
        "R22 tool calls",
        "E",
        file(row(chosen=[{"role": "assistant", "content": "x", "tool_calls": [1]}])),
        ("tool_calls",),
    ),
    Case("R22 tools", "E", file(row(tools=[{"name": "x"}])), ('"tools" is not supported',)),
    Case("R23 no messages", "E", file(row(chosen=[])), ('"chosen" is an empty list',)),
    Case(
        "R24 transcripts",
        "O",
        b'{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b", "rejected": "\\n\\nHuman: a\\n\\nAssistant: c"}\n',
        1,
    ),
    Case(
        "R24 transcript in doubt",
        "S",
        b'{"chosen": "\\n\\nHuman: a\\n\\nAssistant: Human: b", "rejected": "\\n\\nHuman: a\\n\\nAssistant: c"}\n',
        ("turn.marker",),
    ),
    Case(
        "R24 one side is none",
        "S",
        b'{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b", "rejected": "c"}\n',
        ("turn.first",),
    ),
    Case("R25 scores as text", "O", file(row(prompt="b", score_chosen="4.5", score_rejected="1")), 2),
    Case(
        "R25 score no number",
        "E",
        file(row(score_chosen="high", score_rejected="1")),
        ('"score_chosen" is the text', "finite"),
    ),
    Case(
        "R26 labels",
        "O",
        "\n".join(
            json.dumps({"prompt": "a", "completion": f"b{k}", "label": label})
            for k, label in enumerate([True, False, 1, 0, "true", "False", "yes", "no", 1.0])
        ).encode(),
        9,
    ),
    Case(
        "R26 label 2",
        "E",
        b'{"prompt": "a", "completion": "b", "label": 2}\n',
        ('"label" is a number (2)', "true or false"),
    ),
    Case("R27 id twice", "W", "\n".join([row(id="x"), row(id="x", prompt="b")]).encode(), ("id.repeated",)),
    Case("R27 id of another type", "E", file(row(id=[1])), ('"id" is a list',)),
    Case("weight 0", "E", file(row(weight=0)), ('"weight" is 0', "above 0")),
    Case("preferred 2", "E", file(row(preferred=2)), ('"preferred" is 2', "between 0 and 1")),
    Case("no known keys", "E", b'{"foo": 1, "bar": 2}\n', ("no known form", "foo, bar")),
    Case(
        "ranks and responses",
        "E",
        b'{"prompt": "a", "responses": ["b", "c"], "ranks": [1]}\n',
        ("1 entries for 2 responses",),
    ),
    Case(
        "votes below 0",
        "E",
        b'{"prompt":"a","response_a":"b","response_b":"c","votes_a":-1,"votes_b":2}\n',
        ('"votes_a" is -1',),
    ),
]
CONTENT = [
    Case("C1 identical", "S", file(row(chosen="x", rejected="x")), ("pair.identical",)),
    Case("C1 identical messages", "S", (whole(turns("a", "b"), turns("a", "b")) + "\n").encode(), ("pair.identical",)),
    Case("C2 white space", "S", file(row(chosen="x  y", rejected=" x y\n")), ("pair.equal_after_folding",)),
    Case("C2 composition", "S", file(row(chosen="caf\u00e9", rejected="cafe\u0301")), ("pair.equal_after_folding",)),
    Case("C3 empty chosen", "S", file(row(chosen="")), ("response.empty",)),
    Case("C4 empty rejected", "S", file(row(rejected="")), ("response.empty",)),
    Case("C5 both empty", "S", file(row(chosen="", rejected="")), ("response.empty",)),
    Case("C6 white space only", "S", file(row(chosen=" \n\t\u00a0")), ("response.empty",)),
    Case("C7 empty prompt", "W", file(row(prompt="")), ("prompt.empty",)),
    Case(
        "C8 repeats the prompt", "W", file(row(prompt="p" * 30, chosen="p" * 30 + " b")), ("response.repeats_prompt",)
    ),
    Case("C9 header", "W", file(row(prompt="b", chosen="\n\nAssistant: b")), ("response.header",)),
    Case("C11 zero", "W", file(row(chosen="a\0b")), ("text.nul",)),
    Case(
        "C12 half a surrogate pair",
        "E",
        file('{"prompt": "\\ud800", "chosen": "b", "rejected": "c"}'),
        (":2:", "surrogate"),
    ),
    Case("C12 a whole surrogate pair", "O", file('{"prompt": "\\ud83d\\ude00", "chosen": "b", "rejected": "c"}'), 2),
    Case("C13 direction", "W", file(row(chosen="a\u202eb")), ("text.bidi",)),
    Case("C14 zero width only", "S", file(row(chosen="\u200b\ufeff")), ("response.empty",)),
    Case("C15 escapes", "O", file(row(chosen="\x1b[31mred\x1b]0;x\x07")), 2),
    Case("C16 markup", "O", file(row(chosen="</script><img onerror=x>")), 2),
    Case("C17 long word", "O", file(row(chosen="x" * 2**20)), 2),
    Case("C20 the same but for composition", "O", file(row(prompt="caf\u00e9"), row(prompt="cafe\u0301")), 3),
    Case("C21 scripts", "O", file(row(chosen="\u6771\u4eac \u05e9\u05dc\u05d5\u05dd \U0001f469\u200d\U0001f469")), 2),
    Case("empty turn", "S", file(row(prompt=turns("a", " ", "c"))), ("turn.empty",)),
    Case(
        "two responses in one",
        "S",
        file(row(prompt=turns("a"), chosen=[*turns("b", "c")[::-1], *turns("d", "e")])),
        ("response.turns",),
    ),
    Case("D1 duplicate", "W", file(row()), ("row.duplicate",)),
    Case("D2 contradiction", "W", file(row(chosen=GOOD["rejected"], rejected=GOOD["chosen"])), ("pair.contradiction",)),
    Case("D8 all tied", "S", b'{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 1]}\n', ("ranking.tied",)),
    Case("D8 one response", "S", b'{"prompt": "a", "responses": ["b"], "ranks": [1]}\n', ("ranking.short",)),
    Case(
        "a response with two ranks",
        "S",
        b'{"prompt": "a", "responses": ["b", "b", "c"], "ranks": [1, 2, 3]}\n',
        ("ranking.identical",),
    ),
    Case("D9 scores disagree", "W", file(row(prompt="b", score_chosen=1, score_rejected=2)), ("pair.scores",)),
    Case(
        "D10 one class",
        "W",
        b'{"prompt":"a","completion":"b","label":1}\n{"prompt":"c","completion":"d","label":1}\n',
        ("rating.one_class",),
    ),
    Case(
        "a rating and its opposite",
        "W",
        b'{"prompt":"a","completion":"b","label":1}\n{"prompt":"a","completion":"b","label":0}\n',
        ("rating.contradiction",),
    ),
    Case(
        "no votes", "S", b'{"prompt":"a","response_a":"b","response_b":"c","votes_a":0,"votes_b":0}\n', ("votes.none",)
    ),
]
CASES = {case.id: case for case in [*FILES, *ROWS, *CONTENT]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_case(case: str, place: Path) -> None:
    _, expected, content, want, name = CASES[case]
    (place / name).write_bytes(content)
    started = time.process_time()
    if expected == "E":
        with pytest.raises(UserError) as caught:
            read(name)
        assert isinstance(want, tuple)
        assert [text for text in want if text not in str(caught.value)] == [], str(caught.value)
        assert caught.value.code == 2
        assert name in caught.value.problems[0].location
        assert max(len(line) for line in str(caught.value).splitlines()) < 400
    else:
        reading = read(name)
        assert reading.read == len(reading.rows) + len(reading.skipped)
        reasons = [] if isinstance(want, int) else list(want)
        assert [problem.reason for problem in reading.skipped] == (reasons if expected == "S" else [])
        assert [note.reason for note in reading.notes] == (reasons if expected == "W" else [])
        assert all(
            problem.location.startswith(name) and problem.message for problem in [*reading.skipped, *reading.notes]
        )
        assert not isinstance(want, int) or len(reading.rows) == want
        assert all(len(sha) == 64 for sha in reading.files.values())
    assert time.process_time() - started < 3


class TestPlaces:
    """Cases that are more than the bytes of one file."""

    def test_f1_missing_file_with_the_nearest_name(self, place: Path) -> None:
        (place / "pairs.jsonl").write_bytes(file())
        with pytest.raises(UserError, match=r'pairs.json: there is no such file. Did you mean "pairs.jsonl"?'):
            read("pairs.json")

    def test_f4_folder(self, place: Path) -> None:
        (place / "data").mkdir()
        (place / "data" / "pairs.jsonl").write_bytes(file())
        with pytest.raises(UserError, match=r"data: is a folder. Name the files: pairs.jsonl"):
            read("data")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_f5_no_permission(self, place: Path) -> None:
        (place / "rows.jsonl").write_bytes(file())
        (place / "rows.jsonl").chmod(0)
        with pytest.raises(UserError, match="Permission denied"):
            read("rows.jsonl")

    def test_f16_parquet(self, place: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        table = pyarrow.Table.from_pylist([{**GOOD, "system": None}, {**GOOD, "prompt": "b", "system": "s"}])
        parquet.write_table(table, "rows.parquet")
        rows = read("rows.parquet").rows
        assert [str(one.place) for one in rows] == ["rows.parquet:1", "rows.parquet:2"]
        assert isinstance(rows[0].prompt, str)
        assert [turn.role for turn in rows[1].prompt] == ["system", "user"]  # type: ignore[union-attr]

    def test_f16_parquet_damaged(self, place: Path) -> None:
        pytest.importorskip("pyarrow")
        (place / "rows.parquet").write_bytes(b"PAR1" + b"x" * 100)
        with pytest.raises(UserError, match="not readable as Parquet"):
            read("rows.parquet")

    def test_f18_the_same_file_twice(self, place: Path) -> None:
        (place / "a.jsonl").write_bytes(file())
        (place / "b.jsonl").write_bytes(file())
        reading = read(["a.jsonl", "b.jsonl"])
        assert [note.reason for note in reading.notes] == ["file.twice", "row.duplicate"]
        assert list(reading.files) == ["a.jsonl", "b.jsonl"]

    def test_f20_links_in_a_circle(self, place: Path) -> None:
        (place / "a.jsonl").symlink_to("b.jsonl")
        (place / "b.jsonl").symlink_to("a.jsonl")
        with pytest.raises(UserError, match="cannot be read"):
            read("a.jsonl")

    def test_f21_a_file_that_changes_while_it_is_read(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import preftune.rows.sources as sources

        (place / "rows.jsonl").write_bytes(file())
        honest = sources.digest

        def changing(path: Path) -> str:
            with path.open("ab") as stream:
                stream.write(file())
            return honest(path)

        monkeypatch.setattr(sources, "digest", changing)
        with pytest.raises(UserError, match="changed while it was read"):
            read("rows.jsonl")

    @pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
    def test_f25_not_an_ordinary_file(self, place: Path, kind: str) -> None:
        name = "/dev/zero" if kind == "device" else "rows.jsonl"
        if kind == "pipe":
            os.mkfifo(name)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(name)
        with pytest.raises(UserError, match="not an ordinary file"):
            read(name)

    def test_a_hub_name_that_nobody_gives(self, place: Path) -> None:
        pytest.importorskip("datasets")
        with pytest.raises(UserError, match="nobody/nothing: neither a file nor a dataset") as caught:
            read("nobody/nothing")
        assert caught.value.code == 74

    def test_every_defect_of_every_file_is_listed(self, place: Path) -> None:
        (place / "a.jsonl").write_bytes(file("{", row(chosen=1), row(rejected=[]), row()))
        (place / "b.jsonl").write_bytes(file("[]"))
        with pytest.raises(UserError) as caught:
            read(["a.jsonl", "b.jsonl", "c.jsonl"])
        places = sorted(problem.location for problem in caught.value.problems)
        assert places == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4", "b.jsonl:2", "c.jsonl"]

    def test_the_same_defect_is_told_once(self, place: Path) -> None:
        (place / "a.jsonl").write_bytes(file(*[row(chosen=None)] * 50))
        with pytest.raises(UserError, match=r"a.jsonl:2: .* \(and 49 more rows, up to 51\)"):
            read("a.jsonl")

    def test_errors_show_no_control_characters(self, place: Path) -> None:
        (place / "a.jsonl").write_bytes(file(row(score_chosen="\x1b[31m\u202e" + "x" * 500, score_rejected=1)))
        with pytest.raises(UserError) as caught:
            read("a.jsonl")
        assert "\x1b" not in str(caught.value)
        assert "\u202e" not in str(caught.value)
        assert len(str(caught.value)) < 200


def test_the_corpus_is_large_enough() -> None:
    assert len(CASES) > 100
    assert {case.expected for case in CASES.values()} == set("ESWO")


def test_odd_texts_come_out_as_they_went_in(place: Path) -> None:
    for case in CONTENT:
        if case.expected == "O":
            (place / case.name).write_bytes(case.content)
            last = read(case.name).rows[-1]
            assert isinstance(last, Pair)
            assert last.chosen == json.loads(case.content.splitlines()[-1])["chosen"]


def test_labels_mean_what_they_say(place: Path) -> None:
    (place / "rows.jsonl").write_bytes(CASES["R26 labels"].content)
    rows = read("rows.jsonl").rows
    assert [one.good for one in rows if isinstance(one, Rating)] == [k % 2 == 0 for k in range(9)]


Shared = Callable[[str], Path]


def test_every_dirty_hh_row_is_left_out_for_one_of_its_known_issues(shared: Shared) -> None:
    path = shared("data/dirty/hh_raw_with_issues.jsonl")
    known = {
        "identical": "pair.identical",
        "empty_response": "response.empty",
        "empty_turn": "turn.empty",
        "last_turn_not_assistant": "turn.last",
        "roles_not_alternating": "turn.order",
        "prompts_differ": "prompt.differs",
        "role_marker_inside_turn": "turn.marker",
    }
    reading = read(str(path))
    issues = [json.loads(line)["issues"] for line in path.read_text().splitlines()]
    assert reading.rows == []
    assert reading.read == 192
    for problem, of_row in zip(reading.skipped, issues, strict=True):
        assert problem.reason in {known[issue] for issue in of_row}, problem


def test_unusable_pandalm_is_refused_with_its_keys(shared: Shared) -> None:
    with pytest.raises(UserError, match=r"keys seen: idx, .* \(and 56 more rows") as caught:
        read(str(shared("data/dirty/pandalm_raw_unusable.jsonl")))
    assert len(caught.value.problems) == 1


def test_clean_rows_are_not_suspected(shared: Shared) -> None:
    for name in ("pairs/hh_helpful.test.jsonl", "pairs/llmbar_neighbor.jsonl", "unpaired/hh_thumbs.train.jsonl"):
        assert read(str(shared(f"data/{name}"))).skipped == []
    assert all(len(responses(one)) == 2 for one in read(str(shared("data/pairs/hh_harmless.test.jsonl"))).rows)

"""Bad and odd input files, one case each: refused with its place, skipped by reason, kept with a note, or read well.

Cases that need a tokenizer (T, J, C10, C19, C22 to C24) stand in tests/tokens/test_tokens.py.
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
    """expected: texts of the error, reasons of what is skipped or noted, or nothing."""

    id: str
    outcome: str
    content: bytes | str
    expected: tuple[str, ...]
    name: str
    rows: int = -1


def refused(id: str, content: bytes | str, *texts: str, name: str = "rows.jsonl") -> Case:
    return Case(id, "refused", content, texts, name)


def skipped(id: str, content: bytes | str, reason: str) -> Case:
    return Case(id, "skipped", content, (reason,), "rows.jsonl")


def noted(id: str, content: bytes | str, reason: str) -> Case:
    return Case(id, "noted", content, (reason,), "rows.jsonl")


def read_well(id: str, content: bytes | str, rows: int, name: str = "rows.jsonl") -> Case:
    return Case(id, "read", content, (), name, rows)


FILES = [
    refused("F2 empty", b"", "rows.jsonl: is empty"),
    refused("F3 blank lines", b"\n \n\n", "holds no rows"),
    read_well("F6 byte order mark", b"\xef\xbb\xbf" + file(), 1),
    read_well("F6 byte order mark before a list", b"\xef\xbb\xbf[" + row().encode() + b"]", 1, name="rows.json"),
    refused("F7 UTF-16", file().decode().encode("utf-16"), "UTF-16", "iconv"),
    refused("F7 UTF-16 without mark", file().decode().encode("utf-16-le"), "UTF-16"),
    refused("F8 Latin-1", file(row(chosen="caf\u00e9")).decode().encode("latin-1"), "rows.jsonl:2: byte ", "iconv"),
    read_well("F9 CRLF", file(row(chosen="b")).replace(b"\n", b"\r\n"), 2),
    read_well("F10 no newline at the end", file().rstrip(), 1),
    refused("F11 cut in the last line", file(row(prompt="b"))[:-30], "rows.jsonl:2: the file ends inside of this line"),
    read_well("F12 list in .jsonl", f"[{row()},\n{row(chosen='c')}]".encode(), 2),
    read_well("F12 lines in .json", file(row(chosen="c")), 2, name="rows.json"),
    refused("F12 list cut short", f"[{row()},\n".encode(), "ends inside of its list", name="rows.json"),
    refused("F12 list with something after", f"[{row()}] x".encode(), "follows after the list", name="rows.json"),
    refused("F12 broken element", f"[{row()},\n{{'a': 1}}]".encode(), "rows.json:2: not JSON", name="rows.json"),
    refused(
        "F12 not objects", f"[{row()}, 7]".encode(), "rows.json:2: is a number (7), not an object", name="rows.json"
    ),
    refused("F13 pretty-printed", json.dumps(GOOD, indent=1).encode(), "over several lines", "jq -c"),
    refused("F13 later", file() + json.dumps(GOOD, indent=1).encode(), "rows.jsonl:2: an object goes over"),
    refused("a page", b"# Rows\n\nSome text.\n", "README.md:1: is not JSON: no object begins", name="README.md"),
    read_well("F14 gzip", gzip.compress(file()), 1, name="rows.jsonl.gz"),
    read_well("F14 gzip by content", gzip.compress(file()), 1),
    refused("F14 gzip cut short", gzip.compress(file(*[row(id=k) for k in range(99)]))[:-40], "cut short or damaged"),
    refused("F14 zstd", b"\x28\xb5\x2f\xfd" + b"x" * 50, "zstd -d", name="rows.jsonl.zst"),
    refused("F15 gzip bomb", gzip.compress(b" " * (70 * 2**20)), "more than 200 times"),
    refused("F24 endless line", b"x" * (65 * 2**20), "rows.jsonl:1: the line is longer than 64 MiB"),
    refused("F15 gzip bomb in lines", gzip.compress(b" \n" * (40 * 2**20)), "more than 200 times"),
    refused(
        "F17 csv", b"prompt,chosen,rejected\na,b\n", "rows.csv:2: has 2 cells, and there are 3 columns", name="rows.csv"
    ),
    refused("F22 LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    refused("F23 HTML page", b"<!DOCTYPE html><html></html>", "HTML page"),
    refused("F23 HTML page 2", b"\n<html><body>404</body></html>", "HTML page"),
    refused("zip", b"PK\x03\x04" + b"x" * 50, "zip archive", name="rows.zip"),
    refused("single quotes", b"{'prompt': 'a'}\n{'prompt': 'b'}\n", "double quotes"),
]
ROWS = [
    refused("R1 a list", file("[1, 2]"), "rows.jsonl:2: is a list, not an object"),
    refused("R1 a text", file('"x"'), "rows.jsonl:2: is the text 'x'"),
    refused("R2 no chosen", file(row(chosen=...)), 'rows.jsonl:2: "chosen"', "is missing", "prompt, rejected"),
    refused("R3 no prompt", row(prompt=...), 'rows.jsonl:1: "prompt" is missing'),
    skipped("R4 null", file(row(chosen=None)), "row.hole"),
    refused("R5 number", file(row(chosen=7)), '"chosen" is a number (7)', "Quote it"),
    refused("R5 truth value", file(row(rejected=True)), '"rejected" is a truth value (true)'),
    refused(
        "R6 key twice",
        file('{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}'),
        ":2:",
        '"chosen" stands twice',
    ),
    refused("R6 key twice in a list", b'[{"a": 1, "a": 2}]', 'rows.json:1: the key "a" stands twice', name="rows.json"),
    refused(
        "R7 NaN", file('{"prompt": "a", "chosen": "b", "rejected": "c", "weight": NaN}'), ":2: NaN is not a number"
    ),
    refused(
        "R7 infinity by size",
        file('{"prompt": "a", "chosen": "b", "rejected": "c", "weight": 1e999}'),
        '"weight"',
        "finite",
    ),
    refused("R8 deep", file('{"a":' * 100_000), ":2: nested too deeply"),
    refused("R8 deeper than allowed", file(row(extra=json.loads("[" * 70 + "]" * 70))), ":2: nested more than 64 deep"),
    refused(
        "R9 many digits", file(row(id=...)[:-1] + ', "weight": ' + "9" * 5000 + "}"), ":2: a number has too many digits"
    ),
    noted("R10 more fields", file(row(prompt="b", source="x")), "fields.extra"),
    refused("R11 choosen", row(chosen=..., choosen="b"), 'Did you mean "chosen" by "choosen"?'),
    refused(
        "R11 response_w",
        '{"prompt": "a", "response_w": "b", "response_l": "c"}\n',
        'Did you mean "chosen" by "response_w"?',
    ),
    refused("R11 promt", row(prompt=..., promt="b"), 'Did you mean "prompt" by "promt"?'),
    refused("R12 two forms", file('{"prompt": "a", "completion": "b"}'), ":2: has the form demos", "pairs", "line 1"),
    refused(
        "R13 type drifts late",
        file(*[row(id=k) for k in range(3000)], row(chosen=["x", 7])),
        ":3002: chosen[0] is the text 'x'",
    ),
    refused("R14 not a list", '{"messages": "hello"}\n', '"messages" is a text, needs a list'),
    refused("R15 no content", file(row(chosen=[{"role": "assistant"}])), "chosen[0].content is missing"),
    refused("R15 no role", file(row(chosen=[{"content": "x"}])), "chosen[0].role is missing"),
    refused(
        "R16 role",
        file(row(chosen=[{"role": "asistant", "content": "x"}])),
        "chosen[0].role",
        'Did you mean "assistant"?',
    ),
    noted("R17 user twice", row(prompt=[*turns("a"), *turns("b")]), "turn.order"),
    skipped("R18 last is the user's", whole(turns("a", "b", "c"), turns("a", "b", "d")), "turn.last"),
    skipped("R19 prompts differ", whole(turns("a", "b"), turns("x", "c")), "prompt.differs"),
    skipped(
        "R20 systems differ",
        whole(
            [{"role": "system", "content": "s"}, *turns("a", "b")],
            [{"role": "system", "content": "t"}, *turns("a", "c")],
        ),
        "prompt.differs",
    ),
    refused(
        "R21 image",
        file(row(chosen=[{"role": "assistant", "content": [{"type": "image_url"}]}])),
        "chosen[0].content[0] is image_url",
        "not supported",
    ),
    read_well(
        "R21 parts of text", row(chosen=[{"role": "assistant", "content": [{"type": "text", "text": "x"}]}]).encode(), 1
    ),
    refused(
        "R22 tool calls", file(row(chosen=[{"role": "assistant", "content": "x", "tool_calls": [1]}])), "tool_calls"
    ),
    refused("R22 tools", file(row(tools=[{"name": "x"}])), '"tools" needs a conversation'),
    skipped("R23 no messages", file(row(chosen=[])), "row.hole"),
    read_well(
        "R24 transcripts",
        '{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b", "rejected": "\\n\\nHuman: a\\n\\nAssistant: c"}\n',
        1,
    ),
    skipped(
        "R24 transcript in doubt",
        '{"chosen": "\\n\\nHuman: a\\n\\nAssistant: Human: b", "rejected": "\\n\\nHuman: a\\n\\nAssistant: c"}\n',
        "turn.marker",
    ),
    skipped("R24 one side is none", '{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b", "rejected": "c"}\n', "turn.first"),
    read_well("R25 scores as text", file(row(prompt="b", score_chosen="4.5", score_rejected="1")), 2),
    refused(
        "R25 score no number",
        file(row(score_chosen="high", score_rejected="1")),
        '"score_chosen" is the text',
        "finite",
    ),
    read_well(
        "R26 labels",
        "\n".join(
            json.dumps({"prompt": "a", "completion": f"b{k}", "label": label})
            for k, label in enumerate([True, False, 1, 0, "true", "False", "yes", "no", 1.0])
        ).encode(),
        9,
    ),
    refused(
        "R26 label 2", '{"prompt": "a", "completion": "b", "label": 2}\n', '"label" is a number (2)', "true or false"
    ),
    noted("R27 id twice", "\n".join([row(id="x"), row(id="x", prompt="b")]), "id.repeated"),
    read_well("R27 ids of any type", file(row(prompt="b", id=[1]), row(prompt="c", id={"$oid": 1.5})), 3),
    refused("weight 0", file(row(weight=0)), '"weight" is 0', "above 0"),
    refused("preferred 2", file(row(preferred=2)), '"preferred" is 2', "between 0 and 1"),
    refused("no known keys", '{"foo": 1, "bar": 2}\n', "no known form", "foo, bar"),
    read_well("text alone", '{"text": "a story"}\n', 1),
    noted("text beside what it comes from", '{"text": "a story", "url": "x", "token_count": 2}\n', "fields.extra"),
    refused("text with a score", '{"text": "a", "score": 3}\n', "alone is imitated", 'data.columns={"score": ""}'),
    refused("text with another side", '{"text": "a", "rejected": "b"}\n', 'data.columns={"rejected": ""}'),
    refused("text with its context", '{"text": "a", "context": "b"}\n', '"context" (a part of what was asked)'),
    refused("text with a system text", '{"text": "a", "system": "b"}\n', "needs a conversation", "Make it messages"),
    refused("text with tools", '{"text": "a", "tools": [{"name": "b"}]}\n', '"tools" needs a conversation'),
    refused(
        "ranks and responses", '{"prompt": "a", "responses": ["b", "c"], "ranks": [1]}\n', "1 entries for 2 responses"
    ),
    refused(
        "votes below 0",
        '{"prompt":"a","response_a":"b","response_b":"c","votes_a":-1,"votes_b":2}\n',
        '"votes_a" is -1',
    ),
]
CONTENT = [
    skipped("C1 identical", file(row(chosen="x", rejected="x")), "pair.identical"),
    skipped("C1 identical messages", whole(turns("a", "b"), turns("a", "b")), "pair.identical"),
    skipped("C2 white space", file(row(chosen="x  y", rejected=" x y\n")), "pair.equal_after_folding"),
    skipped("C2 composition", file(row(chosen="caf\u00e9", rejected="cafe\u0301")), "pair.equal_after_folding"),
    skipped("C3 empty chosen", file(row(chosen="")), "response.empty"),
    skipped("C4 empty rejected", file(row(rejected="")), "response.empty"),
    skipped("C5 both empty", file(row(chosen="", rejected="")), "response.empty"),
    skipped("C6 white space only", file(row(chosen=" \n\t\u00a0")), "response.empty"),
    noted("C7 empty prompt", file(row(prompt="")), "prompt.empty"),
    noted("C8 repeats the prompt", file(row(prompt="p" * 30, chosen="p" * 30 + " b")), "response.repeats_prompt"),
    noted("C9 header", file(row(prompt="b", chosen="\n\nAssistant: b")), "response.header"),
    noted("C11 zero", file(row(chosen="a\0b")), "text.nul"),
    refused(
        "C12 half a surrogate pair", file('{"prompt": "\\ud800", "chosen": "b", "rejected": "c"}'), ":2:", "surrogate"
    ),
    read_well("C12 a whole surrogate pair", file('{"prompt": "\\ud83d\\ude00", "chosen": "b", "rejected": "c"}'), 2),
    noted("C13 direction", file(row(chosen="a\u202eb")), "text.bidi"),
    skipped("C14 zero width only", file(row(chosen="\u200b\ufeff")), "response.empty"),
    read_well("C15 escapes", file(row(chosen="\x1b[31mred\x1b]0;x\x07")), 2),
    read_well("C16 markup", file(row(chosen="</script><img onerror=x>")), 2),
    read_well("C17 long word", file(row(chosen="x" * 2**20)), 2),
    read_well("C20 the same but for composition", file(row(prompt="caf\u00e9"), row(prompt="cafe\u0301")), 3),
    read_well("C21 scripts", file(row(chosen="\u6771\u4eac \u05e9\u05dc\u05d5\u05dd \U0001f469\u200d\U0001f469")), 2),
    skipped("empty turn", file(row(prompt=turns("a", " ", "c"))), "turn.empty"),
    noted(
        "a response of two turns",
        json.dumps(GOOD | {"prompt": turns("a"), "chosen": turns("a", "b", "c", "d")[1:]}),
        "response.turns",
    ),
    noted("D1 duplicate", file(row()), "row.duplicate"),
    noted("D2 contradiction", file(row(chosen=GOOD["rejected"], rejected=GOOD["chosen"])), "pair.contradiction"),
    skipped("D8 all tied", '{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 1]}\n', "ranking.tied"),
    skipped("D8 one response", '{"prompt": "a", "responses": ["b"], "ranks": [1]}\n', "ranking.short"),
    skipped(
        "a response with two ranks",
        '{"prompt": "a", "responses": ["b", "b", "c"], "ranks": [1, 2, 3]}\n',
        "ranking.identical",
    ),
    noted("D9 scores disagree", file(row(prompt="b", score_chosen=1, score_rejected=2)), "pair.scores"),
    noted(
        "D10 one class",
        '{"prompt":"a","completion":"b","label":1}\n{"prompt":"c","completion":"d","label":1}\n',
        "rating.one_class",
    ),
    noted(
        "a rating and its opposite",
        '{"prompt":"a","completion":"b","label":1}\n{"prompt":"a","completion":"b","label":0}\n',
        "rating.contradiction",
    ),
    skipped("no votes", '{"prompt":"a","response_a":"b","response_b":"c","votes_a":0,"votes_b":0}\n', "votes.none"),
]
CASES = {case.id: case for case in [*FILES, *ROWS, *CONTENT]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place: Path, case: Case) -> None:
    content = case.content.encode() if isinstance(case.content, str) else case.content
    (place / case.name).write_bytes(content)


@pytest.mark.parametrize("id", CASES)
def test_case(id: str, place: Path) -> None:
    case = CASES[id]
    write(place, case)
    started = time.process_time()
    if case.outcome == "refused":
        with pytest.raises(UserError) as caught:
            read(case.name)
        assert [text for text in case.expected if text not in str(caught.value)] == [], str(caught.value)
        assert caught.value.code == 2
        assert case.name in caught.value.problems[0].location
        assert max(len(line) for line in str(caught.value).splitlines()) < 400
    else:
        reading = read(case.name)
        assert reading.read == len(reading.rows) + len(reading.skipped)
        for outcome, problems in (("skipped", reading.skipped), ("noted", reading.notes)):
            assert [problem.reason for problem in problems] == [*(case.expected if outcome == case.outcome else ())]
            assert all(problem.location.startswith(case.name) and problem.message for problem in problems)
        assert case.rows in (-1, len(reading.rows))
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
        with pytest.raises(UserError, match=r"data: is a folder\. Name the files, .* fit: data/\*\.jsonl"):
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
        (place / "a.jsonl").write_bytes(file("{", row(chosen=1), row(rejected=True), row()))
        (place / "b.jsonl").write_bytes(file("[]"))
        with pytest.raises(UserError) as caught:
            read(["a.jsonl", "b.jsonl", "c.jsonl"])
        places = sorted(problem.location for problem in caught.value.problems)
        assert places == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4", "b.jsonl:2", "c.jsonl"]

    def test_the_same_defect_is_told_once(self, place: Path) -> None:
        (place / "a.jsonl").write_bytes(file(*[row(chosen=k) for k in range(50)]))
        with pytest.raises(UserError, match=r"a.jsonl:2: .* \(and 49 more rows, up to 51\)"):
            read("a.jsonl")

    def test_errors_show_no_control_characters(self, place: Path) -> None:
        (place / "a.jsonl").write_bytes(file(row(score_chosen="\x1b[31m\u202e" + "x" * 500, score_rejected=1)))
        with pytest.raises(UserError) as caught:
            read("a.jsonl")
        assert "\x1b" not in str(caught.value)
        assert "\u202e" not in str(caught.value)
        assert len(str(caught.value)) < 200


def test_odd_texts_come_out_as_they_went_in(place: Path) -> None:
    for case in CONTENT:
        if case.outcome == "read":
            write(place, case)
            last = read(case.name).rows[-1]
            assert isinstance(last, Pair)
            assert last.chosen == json.loads((place / case.name).read_bytes().splitlines()[-1])["chosen"]


def test_labels_mean_what_they_say(place: Path) -> None:
    write(place, CASES["R26 labels"])
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

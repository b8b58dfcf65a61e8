"""The page opens offline, holds nothing that acts, and says what the record says."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from msgspec.structs import replace

from preftune.errors import UserError
from preftune.record.reader import Extras, ExtraTable, Record, Rewrite
from preftune.report import page
from preftune.report.compare import columns, differences, differing
from preftune.report.page import inert
from preftune.report.words import headline, lede, objective, visible

Make = Callable[..., Path]
HOSTILE = (
    "<script>window.hit=1</script>", "</script><img src=x onerror=hit()>", "<!--<script>", "]]><svg/onload=hit()>",
    "\"><a href='javascript:hit()'>x</a>", "' onmouseover='hit()", "{{ 7 * 7 }}{% raw %}", "&lt;b&gt;&#60;script&#62;",
    "<a href=\"https://example.org\">x</a>", "\u202etxt.exe\u2028\u2029\x1b[31m", "<b>bold</b>%{x}$\\unicode{60}$",
)  # fmt: skip


class Parsed(HTMLParser):
    """Elements with their attributes, the content of scripts, and the text outside of them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.scripts: dict[str, str] = {}
        self.text: list[str] = []
        self.comments: list[str] = []
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            kind = dict(self.elements[-1][1]).get("type") or "run"
            self.scripts[f"{kind} {len(self.scripts)}"] = data
        elif self._inside != "style":
            self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def shape(self) -> list[tuple[str, tuple[tuple[str, str | None], ...]]]:
        """Elements and attributes but for the two attributes that hold a sentence."""
        return [(tag, tuple((k, v) for k, v in attrs if k != "aria-label")) for tag, attrs in self.elements]


@pytest.fixture(scope="session")
def library() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def parse(html: str, library: str) -> Parsed:
    """The page without plotly's five megabytes, which are checked to be there once."""
    assert html.count(library) == 1
    return Parsed(html.replace(library, "0"))


def data(parsed: Parsed) -> list[dict[str, object]]:
    block = next(text for kind, text in parsed.scripts.items() if kind.startswith("application/json"))
    assert not re.search("[<>&\u2028\u2029]", block)
    return json.loads(block, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def swap(record: Record, text: str) -> Record:
    """The record with `text` in every place where a file's text can end up on the page."""
    return replace(
        record,
        run_text=text,
        run={**record.run, "model": {"path": text}, "objective": {"name": text}},
        environment={text: text, "nested": {text: [text]}},
        events=tuple(event._replace(kind=text, text=text) for event in record.events),
        rows=tuple(replace(row, id=f"{text}{row.id}") for row in record.rows),
        data=replace(
            record.data,
            train=replace(record.data.train, skipped={text: 990}, notes=(text,)),
            evaluate=replace(record.data.evaluate, notes=(text,)),
        ),
        extras=Extras((ExtraTable(text, (text,), ((text,),), text),), (Rewrite(text, text, text),)),
    )


def test_only_the_two_known_scripts_may_run_and_nothing_is_fetched(make_record: Make, library: str) -> None:
    html = page([Record.open(make_record())])
    parsed = parse(html, library)
    metas = [dict(attributes) for tag, attributes in parsed.elements if tag == "meta"]
    policy = next(meta["content"] or "" for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")
    scripts = [library if text == "0" else text for kind, text in parsed.scripts.items() if kind.startswith("run")]
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts}
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert len(scripts) == 2
    assert set(directives["script-src"].split()) == hashes
    assert directives["default-src"] == "'none'"
    assert "connect-src" not in directives
    for tag, attributes in parsed.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img", "a")
        assert not {"src", "href", "srcset", "action"} & {name for name, _ in attributes}
        assert not any(name.startswith("on") for name, _ in attributes)
    assert not re.search(r"https?:|url\(|@import|//[a-z]+\.", html.replace(library, ""))


@pytest.mark.parametrize("text", [*HOSTILE, "".join(HOSTILE)])
def test_no_text_of_a_record_becomes_markup(make_record: Make, library: str, text: str) -> None:
    record = Record.open(make_record(steps=12))
    benign, hostile = (parse(page([swap(record, t)]), library) for t in ("plain", text))
    assert hostile.shape() == benign.shape()
    assert hostile.comments == benign.comments == []
    assert list(hostile.scripts)[1:] == list(benign.scripts)[1:]
    assert visible(text) in "".join(hostile.text), "the text is shown as it is"
    points = next(chart for chart in data(hostile) if chart["id"] == "rows")["series"]
    assert points[0]["text"][0] == visible(text) + "prefs.jsonl:1"


def test_hostile_folder_names_side_by_side(make_record: Make, library: str) -> None:
    names = ["<img src=x onerror=hit()>", "a\u202eb", "\"onload='hit()"]
    hostile = parse(page([Record.open(make_record(name, steps=12)) for name in names]), library)
    benign = parse(page([Record.open(make_record(name, steps=12)) for name in "xyz"]), library)
    assert hostile.shape() == benign.shape()
    assert "aU+202Eb" in "".join(hostile.text)


def test_page_says_what_the_record_says(make_record: Make, library: str) -> None:
    record = Record.open(make_record())
    parsed = parse(page([record]), library)
    text = re.sub(r"\s+", " ", " ".join(parsed.text))
    accuracy = record.end["accuracy"]
    assert accuracy is not None
    assert f"After 240 steps of DPO, stories260K ranks {100 * accuracy:.1f} % of 320 held-out pairs right." in text
    assert "It learned from 3,838 pairs" in text
    for words in ("The chosen responses became less probable", "Skipped: too_long 118", "0.689", "Lily found a key.",
                  "lr = 1e-6", "2.13.0+cpu", "Saved after step 120."):  # fmt: skip
        assert words in text
    drawn = {chart["id"]: chart for chart in data(parsed)}
    held = next(s for s in drawn["margin"]["series"] if s["name"] == "Held out")
    assert held["y"][-1] == pytest.approx(record.end["margin"], rel=1e-4)
    assert held["x"] == [e["step"] for e in record.evaluations]
    assert len(drawn) == 12
    places = {dict(a)["id"] for t, a in parsed.elements if dict(a).get("class") == "plot"}
    assert places == {f"chart-{name}" for name in drawn}, "every chart has its place and every place its chart"


def test_several_runs(make_record: Make, library: str) -> None:
    first = Record.open(make_record("a"))
    same = replace(first, path=Path("b"))
    better = replace(first, path=Path("c"), run={**first.run, "objective": {"name": "dpo", "beta": 0.5}},
                     rows=tuple(replace(row, accuracy=1.0) for row in first.rows))  # fmt: skip
    text = re.sub(r"\s+", " ", " ".join(parse(page([first, same, better]), library).text))
    assert "3 runs side by side, differing in objective.beta" in text
    assert re.search(r"b 0\.0 ± 0\.7 points on 320 common rows within noise", text)
    assert re.search(r"c \+\S+ ± \S+ points on 320 common rows beyond noise", text)
    assert "cannot be told" in re.sub(r"\s+", " ", " ".join(parse(page([first, replace(same, rows=())]), library).text))


def test_objectives_are_told_apart_in_one_column(make_record: Make, library: str) -> None:
    """Keys that only one of them has are no difference of their own, and losses have no common scale."""
    first = Record.open(make_record("a"))

    def run(path: str, **objective: object) -> Record:
        reference = {"kind": "none"} if objective["name"] == "simpo" else {"kind": "stored"}
        return replace(first, path=Path(path), run={**first.run, "objective": objective, "reference": reference})

    mixed = {"name": "sum", "parts": [{"name": "dpo"}, {"name": "nll"}], "weights": [1.0, 0.5]}
    records = [run("a", name="dpo", beta=0.1, flip=0.0), run("b", name="dpo", beta=0.5, flip=0.0),
               run("c", name="simpo", beta=2.0), run("d", **mixed)]  # fmt: skip
    assert differing(records) == ["objective"]
    told = ["dpo beta=0.1", "dpo beta=0.5", "simpo", "DPO + imitation"]
    assert [column.values for column in columns(records)] == [(each,) for each in told]
    parsed = parse(page(records), library)
    text = re.sub(r"\s+", " ", " ".join(parsed.text))
    assert "4 runs side by side, differing in objective." in text
    assert "loss" not in {chart["id"] for chart in data(parsed)}
    frozen = replace(records[1], run={**records[1].run, "reference": {"kind": "frozen"}})
    assert differing([records[0], frozen, records[2]]) == ["objective", "reference.kind"]
    assert differing(records[:2]) == ["objective.beta"]
    assert "loss" in {chart["id"] for chart in data(parse(page(records[:2]), library))}


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ({"rating": 9}, r"puts good above bad in \S+\s% of the comparisons of 320 held-out ratings\."),
        ({"ranking": 9}, r"ranks \S+\s% of 320 held-out rankings right\."),
        ({"pair": 9, "demo": 2}, r"ranks \S+\s% of 320 held-out rows right\."),
    ],
)
def test_rows_are_called_what_they_are(make_record: Make, kinds: dict[str, int], told: str) -> None:
    assert re.search(told, headline(of_kinds(Record.open(make_record(steps=12)), **kinds)))


def of_kinds(record: Record, **kinds: int) -> Record:
    assert record.data.train is not None
    return replace(record, data=replace(record.data, train=replace(record.data.train, kinds=kinds)))


def test_accuracy_and_its_error_are_of_the_rows_that_have_one(make_record: Make, library: str) -> None:
    record = Record.open(make_record(steps=12))
    uneven = replace(
        record, rows=tuple(replace(row, accuracy=row.accuracy if i < 10 else None) for i, row in enumerate(record.rows))
    )
    assert headline(uneven).endswith("of 10 held-out pairs right; 310 more have no right order.")
    wide, narrow = (float(columns([one])[0].cells[0].split("±")[1]) for one in (uneven, record))
    assert narrow < 3
    assert wide > 10
    assert "of 10 held-out pairs right" in "".join(parse(page([uneven]), library).text)


def test_changes_explain_the_margin_only_where_they_are_of_the_same_rows(make_record: Make) -> None:
    record = Record.open(make_record(steps=12))
    assert re.search(r"nats: the log-probability of chosen changed by \S+, that of rejected by \S+\.", lede(record)[-1])
    mixed = replace(record, evaluations=tuple({**e, "margin": (e["margin"] or 0) / 5} for e in record.evaluations))
    assert re.fullmatch(r"The margin grew by \S+ nats\.", lede(mixed)[-1])


@pytest.mark.parametrize(
    ("kind", "unit", "names", "told"),
    [("rating", "good above bad", {"Good responses", "Bad responses"}, "Where good responses fell too"),
     ("pair", "pairs ranked right", {"Chosen", "Rejected"}, "Where chosen fell too"),
     ("demo", None, {"Responses"}, "the responses to imitate")],
)  # fmt: skip
def test_charts_speak_of_the_rows(
    make_record: Make, library: str, kind: str, unit: str | None, names: set[str], told: str
) -> None:
    record = of_kinds(Record.open(make_record(steps=12)), **{kind: 9})
    if kind == "demo":
        none = ("accuracy", "margin", "rejected", "chosen_reward")
        lines = [[{k: v for k, v in line.items() if not k.startswith(none)} for line in part]
                 for part in (record.steps, record.evaluations)]  # fmt: skip
        lengths = {key: value for key, value in record.data.lengths.items() if key != "rejected"}
        record = replace(record, steps=tuple(lines[0]), evaluations=tuple(lines[1]), rows=(),
                         data=replace(record.data, lengths=lengths))  # fmt: skip
    parsed = parse(page([record]), library)
    drawn = {chart["id"]: chart for chart in data(parsed)}
    assert drawn.get("accuracy", {}).get("y") == unit
    assert {s["name"] for s in drawn["logp_change"]["series"] if "held out" not in s["name"]} == names
    assert told in drawn["logp_change"]["look"]
    assert {s["name"] for s in drawn["lengths"]["series"]} == {"Prompt", *names}
    text = " ".join(parsed.text)
    assert all(f"Log-probability of {name.lower()}" in text for name in names)
    if kind == "demo":
        assert not re.search("displacement:|[Rr]ejected", "".join(str(chart["look"]) for chart in drawn.values()))


def test_what_was_used_is_compared_and_few_rows_prove_little(make_record: Make) -> None:
    first = Record.open(make_record("a"))
    open_ended = replace(first, run={**first.run, "data": {"train": "prefs.jsonl", "holdout": 0.1}})
    assert differing([first, open_ended]) == ["data.max_tokens"]
    used = [replace(record, data=replace(record.data, max_tokens=512)) for record in (first, open_ended)]
    assert differing(used) == []
    few = [replace(first, path=Path(name), rows=first.rows[:12]) for name in "ab"]
    assert re.fullmatch(r"0\.0 ± 14\.0 points on 12 common rows", differences(few)[0].text)


def test_a_long_name_stays_beside_its_colour() -> None:
    style = (Path(sys.modules["preftune.report"].__path__[0]) / "page.css").read_text()
    assert re.search(r"\.runs tbody th \{[^}]*white-space: nowrap", style)
    assert re.search(r"\.legend li \{[^}]*display: flex", style)


def test_two_folders_of_one_name_are_told_apart(make_record: Make, library: str) -> None:
    records = [Record.open(make_record(f"{parent}/run", steps=12)) for parent in ("one", "two")]
    text = "".join(parse(page(records), library).text)
    assert "one/run" in text
    assert "two/run" in text


def test_bare_broken_and_pairless_records_have_a_page(tmp_path: Path, make_record: Make, library: str) -> None:
    (tmp_path / "run.toml").write_text("seed = 1")
    bare = Record.open(tmp_path)
    assert "holds no step" in "".join(parse(page([bare]), library).text)
    full = Record.open(make_record(steps=30))
    nan = float("nan")
    broken = replace(full, steps=tuple({k: v if k == "step" else nan for k, v in s.items()} for s in full.steps),
                     evaluations=tuple({**e, "loss": nan, "margin": nan} for e in full.evaluations))  # fmt: skip
    assert "was not a number" in "".join(parse(page([broken]), library).text)
    demos = [{"step": s, "loss": 2 - s / 50, "lr": 1e-5, "grad_norm": 1.0, "accuracy": None} for s in range(1, 40)]
    held = ({"step": 0, "rows": 9, "loss": 2.0}, {"step": 39, "rows": 9, "loss": 1.25})
    sft = parse(page([replace(bare, steps=tuple(demos), evaluations=held)]), library)
    assert "has a held-out loss of 1.25, down from 2" in "".join(sft.text)
    assert "accuracy" not in {chart["id"] for chart in data(sft)}
    page([bare, full, broken])


def test_page_is_small_and_the_same_each_time(make_record: Make, library: str) -> None:
    record = Record.open(make_record(steps=6))
    long = replace(record, steps=tuple({**record.steps[0], "step": i} for i in range(1, 20_001)))
    first, second = page([long]), page([long])
    assert first == second
    assert len(first) - len(library) < 200_000


def test_no_record_no_page() -> None:
    with pytest.raises(UserError, match="at least one record"):
        page([])


def test_the_home_folder_is_not_told(make_record: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    record = replace(Record.open(make_record(steps=6)), run_text='train = "/home/somebody/prefs.jsonl"')
    html = page([record])
    assert "somebody" not in html
    assert "~/prefs.jsonl" in html


def test_spelling_out() -> None:
    assert visible("a\u202eb\x00\ud800") == "aU+202EbU+0000U+D800"
    assert visible("ça 家族 👨\u200d👩 می\u200cخواهم\n\t") == "ça 家族 👨\u200d👩 می\u200cخواهم\n\t"
    assert inert(["</script>&\u2028", float("nan")]) == '["\\u003c/script\\u003e\\u0026\\u2028",null]'


def test_import_is_light() -> None:
    heavy = "torch", "jinja2", "plotly", "numpy", "transformers"
    code = f"import sys, preftune.report, preftune.diagnosis; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def browser(tmp_path: Path) -> list[str]:
    found = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    if not found:
        pytest.skip("no Chromium on this machine")
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    return [found, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={tmp_path / 'profile'}"]


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_a_browser_draws_all_and_runs_nothing_else(make_record: Make, browser: list[str], several: bool) -> None:
    records = [swap(Record.open(make_record("<b onclick=hit()>a")), "".join(HOSTILE))]
    records += [Record.open(make_record("b", seed=1))] * several
    place = records[0].path.parent / "page.html"
    html = page(records).replace("</body>", "<script>document.title = 'hit'</script></body>")  # the policy forbids it
    place.write_text(html, encoding="utf-8")
    command = [*browser, "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom", place.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert len(messages) == 1, "the browser complains of the planted script and of nothing else"
    assert "Content Security Policy" in messages[0]
    assert "<title>hit</title>" not in done.stdout
    assert done.stdout.count('class="main-svg"') >= 2 * html.count('class="plot"')
    assert "javascript:" not in "".join(re.findall(r'(?:xlink:)?href="[^"]*"', done.stdout))


@pytest.mark.parametrize(
    ("written", "spelled"),
    [({"name": "dpo"}, "DPO"), ({"name": "simpo"}, "SimPO"), ({"name": "r_dpo"}, "R-DPO"), ({}, "tuning"),
     ({"name": "sum", "parts": [{"name": "dpo"}, {"name": "nll"}]}, "DPO + imitation")],
)  # fmt: skip
def test_objectives_are_written_as_people_write_them(written: dict[str, object], spelled: str) -> None:
    assert objective(Record(path=Path("run"), run={"objective": written})) == spelled

"""The page opens offline, holds nothing that can act, and agrees with the record."""

from __future__ import annotations

import base64
import functools
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
from drawn import ONLINE, ended, phases
from msgspec.structs import replace

from preftune.diagnosis.finding import share
from preftune.errors import UserError
from preftune.record.extras import Curve, ExtraChart, Extras, ExtraTable, Rewrite
from preftune.record.reader import Record, Sample, Texts
from preftune.report import page
from preftune.report.charts import charts
from preftune.report.compare import columns, differences, differing
from preftune.report.figures import evaluations, tiles
from preftune.report.page import inert
from preftune.report.series import Chart
from preftune.report.words import headline, lead, number, objective, visible

Make = Callable[..., Path]
HOSTILE = (
    "<script>window.hit=1</script>", "</script><img src=x onerror=hit()>", "<!--<script>", "]]><svg/onload=hit()>",
    "\"><a href='javascript:hit()'>x</a>", "' onmouseover='hit()", "{{ 7 * 7 }}{% raw %}", "&lt;b&gt;&#60;script&#62;",
    "<a href=\"https://example.org\">x</a>", "\u202etxt.exe\u2028\u2029\x1b[31m", "<b>bold</b>%{x}$\\unicode{60}$",
)  # fmt: skip


class Parsed(HTMLParser):
    """Elements with their attributes (but those that hold a sentence), the content of scripts, and the text outside."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.comments: list[str] = []
        self._inside = ""
        self.feed(html)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value for name, value in attrs if name != "aria-label"}))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append((self.elements[-1][1].get("type") or "run", data))
        elif self._inside != "style":
            self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def charts(self) -> dict[str, dict]:
        block = next(text for kind, text in self.scripts if kind == "application/json")
        assert not re.search("[<>&\u2028\u2029]", block)
        charts = json.loads(block, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        return {chart["id"]: chart for chart in charts}


@functools.cache
def library() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def parsed(*records: Record) -> Parsed:
    """The page without plotly's five megabytes, which are checked to be there once."""
    html = page(records)
    assert html.count(library()) == 1
    return Parsed(html.replace(library(), "0"))


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
        extras=Extras(
            (ExtraTable(text, (text,), ((text,),), text),),
            (Rewrite(text, text, text),),
            (ExtraChart(text, text, text, (Curve(text, (0, 1), (1, 2)), Curve(text, (0,), (1,))), text),),
        ),
    )


def test_only_the_two_known_scripts_may_run_and_nothing_is_fetched(make_record: Make) -> None:
    record = Record.open(make_record())
    result = parsed(record)
    metas = [attributes for tag, attributes in result.elements if tag == "meta"]
    policy = next(meta["content"] or "" for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")
    scripts = [library() if text == "0" else text for kind, text in result.scripts if kind == "run"]
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts}
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert len(scripts) == 2
    assert set(directives["script-src"].split()) == hashes
    assert directives["default-src"] == "'none'"
    assert "connect-src" not in directives
    for tag, attributes in result.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img", "a")
        assert not {"src", "href", "srcset", "action"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?:|url\(|@import|//[a-z]+\.", page([record]).replace(library(), ""))


@pytest.mark.parametrize("text", [*HOSTILE, "".join(HOSTILE)])
def test_no_text_of_a_record_becomes_markup(make_record: Make, text: str) -> None:
    record = Record.open(make_record(steps=12))
    benign, hostile = (parsed(swap(record, t)) for t in ("plain", text))
    assert hostile.elements == benign.elements
    assert hostile.comments == benign.comments == []
    assert hostile.scripts[1:] == benign.scripts[1:]
    assert visible(text) in "".join(hostile.words), "the text is shown as it is"
    assert hostile.charts()["rows"]["series"][0]["text"][0] == visible(text) + "prefs.jsonl:1"


def test_hostile_folder_names_side_by_side(make_record: Make) -> None:
    names = ["<img src=x onerror=hit()>", "a\u202eb", "\"onload='hit()"]
    hostile, benign = (parsed(*(Record.open(make_record(n, steps=12)) for n in group)) for group in (names, "xyz"))
    assert hostile.elements == benign.elements
    assert "aU+202Eb" in hostile.text


def test_page_says_what_the_record_says(make_record: Make) -> None:
    record = Record.open(make_record())
    result = parsed(record)
    share = f"{100 * (record.end['accuracy'] or 0):.1f} %"
    for words in ("After 240 steps of DPO and 15,360 rows seen, stories260K ranks "
                  f"{share} of 320 held-out pairs right.",
                  "It learned from 3,838 pairs, each 4.00 times,",
                  "The chosen responses became less probable", "Skipped: too_long 118", "0.689", "Lily found a key.",
                  "lr = 1e-6", "2.13.0+cpu", "Saved after step 120."):  # fmt: skip
        assert words in result.text
    charts = result.charts()
    held_out = next(s for s in charts["margin"]["series"] if s["name"] == "Held out")
    assert held_out["y"][-1] == pytest.approx(record.end["margin"], rel=1e-4)
    assert held_out["x"] == [e["step"] for e in record.evaluations]
    plots = {a["id"] for _, a in result.elements if a.get("class") == "plot"}
    assert plots == {f"chart-{name}" for name in charts}, "every chart has its element and every element its chart"
    assert len(charts) == 12


def test_several_runs(make_record: Make) -> None:
    first = Record.open(make_record("a"))
    same = replace(first, path=Path("b"))
    better = replace(first, path=Path("c"), run={**first.run, "objective": {"name": "dpo", "beta": 0.5}},
                     rows=tuple(replace(row, accuracy=1.0) for row in first.rows))  # fmt: skip
    text = parsed(first, same, better).text
    assert "3 runs side by side, differing in objective.beta" in text
    assert re.search(r"b 0\.0 ± 0\.7 points on 320 common rows within noise", text)
    assert re.search(r"c \+\S+ ± \S+ points on 320 common rows beyond noise", text)
    assert "no common held-out rows cannot be told" in parsed(first, replace(better, rows=())).text
    few = [replace(first, path=Path(name), rows=first.rows[:12]) for name in "ab"]
    assert differences(few)[0].text == "0.0 ± 15.7 points on 12 common rows", "few equal verdicts prove little"


def test_runs_of_several_objectives(make_record: Make) -> None:
    """One entry describes each objective, and what has no common scale is not drawn."""
    first = Record.open(make_record("a"))

    def run(path: str, kind: str = "stored", **objective: object) -> Record:
        return replace(first, path=Path(path), run={**first.run, "objective": objective, "reference": {"kind": kind}})

    mixed = {"name": "sum", "parts": [{"name": "dpo"}, {"name": "nll"}], "weights": [1.0, 0.5]}
    records = [run("a", name="dpo", beta=0.1, flip=0.0), run("b", name="dpo", beta=0.5, flip=0.0),
               run("c", "none", name="simpo", beta=2.0), run("d", **mixed)]  # fmt: skip
    assert differing(records) == ["objective"]
    described = ["dpo beta=0.1", "dpo beta=0.5", "simpo", "DPO + SFT"]
    assert [column.values for column in columns(records)] == [(text,) for text in described]
    assert "loss" not in parsed(*records).charts()
    moving = run("b", "moving", name="dpo", beta=0.5, flip=0.0)
    assert differing([records[0], moving, records[2]]) == ["objective", "reference.kind"]
    assert differing(records[:2]) == ["objective.beta"]
    assert "loss" in parsed(*records[:2]).charts()


def test_objectives_are_written_as_people_write_them() -> None:
    both = {"name": "sum", "parts": [{"name": "dpo"}, {"name": "nll"}]}
    for table, spelled in (({"name": "simpo"}, "SimPO"), ({"name": "dpo", "source": "0f"}, "dpo"), ({}, "tuning"),
                           (both, "DPO + SFT")):  # fmt: skip
        assert objective(Record(path=Path("run"), run={"objective": table})) == spelled


def of_kinds(record: Record, **kinds: int) -> Record:
    return replace(record, data=replace(record.data, train=replace(record.data.train, kinds=kinds)))


def test_headline_counts_the_rows_that_have_an_accuracy(make_record: Make) -> None:
    record = Record.open(make_record(steps=12))
    for kinds, result in (
        ({"rating": 9}, "puts good above bad in {} of the comparisons of 320 held-out ratings."),
        ({"ranking": 9}, "ranks {} of 320 held-out rankings right."),
        ({"pair": 9, "demo": 2}, "ranks {} of 320 held-out rows right."),
    ):
        assert headline(of_kinds(record, **kinds)).endswith(result.format(share(record.end["accuracy"])))
    few = tuple(replace(row, accuracy=row.accuracy if i < 10 else None) for i, row in enumerate(record.rows))
    uneven = replace(record, rows=few)
    assert headline(uneven).endswith("of 10 held-out pairs right; 310 more have no right order.")
    wide, narrow = (float(columns([run])[0].cells[0].split("±")[1]) for run in (uneven, record))
    assert narrow < 3 < 10 < wide


def test_changes_explain_the_margin_only_where_they_are_of_the_same_rows(make_record: Make) -> None:
    record = Record.open(make_record(steps=12))
    assert re.search(r"nats: the log-probability of chosen changed by \S+, that of rejected by \S+\.", lead(record)[-1])
    mixed = replace(record, evaluations=tuple({**e, "margin": (e["margin"] or 0) / 5} for e in record.evaluations))
    assert re.fullmatch(r"The margin grew by \S+ nats\.", lead(mixed)[-1])


@pytest.mark.parametrize(
    ("kind", "unit", "names"),
    [("rating", "good above bad", {"Good responses", "Bad responses"}),
     ("pair", "pairs ranked right", {"Chosen", "Rejected"}), ("demo", None, {"Responses"})],
)  # fmt: skip
def test_charts_speak_of_the_rows(make_record: Make, kind: str, unit: str | None, names: set[str]) -> None:
    record = of_kinds(Record.open(make_record(steps=12)), **{kind: 9})
    if kind == "demo":
        absent = ("accuracy", "margin", "rejected", "chosen_reward")
        steps, evaluations = (
            tuple({k: v for k, v in line.items() if not k.startswith(absent)} for line in lines)
            for lines in (record.steps, record.evaluations)
        )
        lengths = {key: value for key, value in record.data.lengths.items() if key != "rejected"}
        record = replace(record, steps=steps, evaluations=evaluations, rows=(),
                         data=replace(record.data, lengths=lengths))  # fmt: skip
    result = parsed(record)
    charts = result.charts()
    assert charts.get("accuracy", {}).get("y") == unit
    assert {s["name"] for s in charts["logp_change"]["series"] if "held out" not in s["name"]} == names
    assert {s["name"] for s in charts["lengths"]["series"]} == {"Prompt", *names}
    assert all(f"Log-probability of {name.lower()}" in result.text for name in names)
    looks = "".join(chart["look"] for chart in charts.values())
    assert bool(re.search("displacement:|[Rr]ejected", looks)) is (kind != "demo")


def test_what_tells_runs_apart(make_record: Make) -> None:
    first, other = (Record.open(make_record(f"{parent}/run", steps=12)) for parent in ("one", "two"))
    assert [column.name for column in columns([first, other])] == ["one/run", "two/run"]
    open_ended = replace(first, run={**first.run, "data": {"train": "prefs.jsonl", "holdout": 0.1}})
    assert differing([first, open_ended]) == ["data.max_tokens"]
    used = [replace(record, data=replace(record.data, max_tokens=512)) for record in (first, open_ended)]
    assert differing(used) == []


def test_bare_broken_and_pairless_records_have_a_page(tmp_path: Path, make_record: Make) -> None:
    (tmp_path / "run.toml").write_text("seed = 1")
    bare = Record.open(tmp_path)
    assert "holds no step" in parsed(bare).text
    full = Record.open(make_record(steps=30))
    nan = float("nan")
    broken = replace(full, steps=tuple({k: v if k == "step" else nan for k, v in s.items()} for s in full.steps),
                     evaluations=tuple({**e, "loss": nan, "margin": nan} for e in full.evaluations))  # fmt: skip
    assert "was not a number" in parsed(broken).text
    demos = [{"step": s, "loss": 2 - s / 50, "lr": 1e-5, "grad_norm": 1.0, "accuracy": None} for s in range(1, 40)]
    held_out = ({"step": 0, "rows": 9, "loss": 2.0}, {"step": 39, "rows": 9, "loss": 1.25})
    sft = parsed(replace(bare, steps=tuple(demos), evaluations=held_out))
    assert "has a held-out loss of 1.25, down from 2" in sft.text
    assert "accuracy" not in sft.charts()
    page([bare, full, broken])
    with pytest.raises(UserError, match="at least one record"):
        page([])


def test_page_is_small_and_the_same_each_time(make_record: Make) -> None:
    record = Record.open(make_record(steps=6))
    long = replace(record, steps=tuple({**record.steps[0], "step": i} for i in range(1, 20_001)))
    first, second = page([long]), page([long])
    assert first == second
    assert len(first) - len(library()) < 200_000


def test_the_home_folder_is_not_shown(make_record: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    record = replace(Record.open(make_record(steps=6)), run_text='train = "/home/somebody/prefs.jsonl"')
    html = page([record])
    assert "somebody" not in html
    assert "~/prefs.jsonl" in html


def test_characters_that_act_are_written_as_codes() -> None:
    assert visible("a\u202eb\x00\ud800") == "aU+202EbU+0000U+D800"
    assert visible("ça 家族 👨\u200d👩 می\u200cخواهم\n\t") == "ça 家族 👨\u200d👩 می\u200cخواهم\n\t"
    assert inert(["</script>&\u2028", float("nan")]) == '["\\u003c/script\\u003e\\u0026\\u2028",null]'


def test_import_is_light() -> None:
    heavy = "torch", "jinja2", "plotly", "numpy", "transformers"
    code = f"import sys, preftune.report, preftune.diagnosis; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture
def browser(tmp_path: Path) -> list[str]:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((path for name in names if (path := shutil.which(name))), None)
    if not program:
        pytest.skip("no Chromium on this machine")
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    return [program, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={tmp_path / 'profile'}"]


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_a_browser_draws_all_and_runs_nothing_else(make_record: Make, browser: list[str], several: bool) -> None:
    records = [swap(Record.open(make_record("<b onclick=hit()>a")), "".join(HOSTILE))]
    records += [Record.open(make_record("b", seed=1))] * several
    path = records[0].path.parent / "page.html"
    html = page(records).replace("</body>", "<script>document.title = 'hit'</script></body>")  # the policy forbids it
    path.write_text(html, encoding="utf-8")
    command = [*browser, "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0
    messages = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert len(messages) == 1, "the browser complains of the planted script and of nothing else"
    assert "Content Security Policy" in messages[0]
    assert "<title>hit</title>" not in result.stdout
    assert result.stdout.count('class="main-svg"') >= 2 * html.count('class="plot"')
    assert "javascript:" not in "".join(re.findall(r'(?:xlink:)?href="[^"]*"', result.stdout))


def test_a_run_that_draws_without_held_out_prompts_says_score_and_kl() -> None:
    record = replace(phases(score=(0.2, 0.8), kl=(0.01, 0.5)), evaluations=())
    first, last = record.phases[0], record.phases[-1]
    text = headline(record)
    assert f"score {number(last['score'])}, up from {number(first['score'])} in the first phase, at a KL" in text
    assert f"a KL of {number(last['kl'], 2)} nats" in text
    assert [tile.label for tile in tiles(record)][:2] == ["Score of what was drawn", "KL"]


def test_the_loss_of_a_surrogate_is_no_measure_of_learning() -> None:
    def headings(record: Record) -> list[str]:
        return [heading for heading, group in charts([("run", record)]) if "loss" in {chart.id for chart in group}]

    assert headings(ONLINE) == ["The optimizer"]
    assert headings(replace(ONLINE, run={"objective": {"name": "dpo"}})) == ["Did it learn?"]


def test_what_a_run_ends_with_is_told_beside_its_start_and_its_error() -> None:
    record = ended(ONLINE, score=0.5, score_error=0.1, kl=1e-9, rows=None)
    assert "has a held-out score of 0.500, up from" in headline(record)
    assert "Its score is uncertain by ±0.196 on other prompts." in lead(record)
    lines = {line.name: line for line in evaluations(record)}
    assert lines["KL"].end == "0"
    result = parsed(record)
    assert "On held-out prompts, before the first step" in result.text


def test_samples_are_shown_up_to_a_number_and_folded_beyond_it() -> None:
    written = tuple(Sample(prompt=f"p{i}", before=Texts("  b"), after=Texts(" a\n", (f"d{i}",))) for i in range(5))
    html = page([replace(ONLINE, samples=written)])
    assert re.sub(r"\s+", " ", html).count("<summary>2 more prompts</summary>") == 1
    assert "<p>b</p>" in html
    assert all(f">d{i}</p>" in html for i in range(5))


def test_without_a_reference_the_score_is_told_by_itself() -> None:
    bare = replace(phases(score=(0.2, 0.8)), run={"objective": {"name": "grpo", "beta": 0}}, evaluations=())
    bare = replace(bare, phases=tuple({key: v for key, v in phase.items() if key != "kl"} for phase in bare.phases))
    assert headline(bare).endswith("that score 0.800, up from 0.200 in the first phase; no prompt is held out.")
    assert [tile.label for tile in tiles(bare)][:1] == ["Score of what was drawn"]
    (score,) = [chart for _, group in charts([("run", bare)]) for chart in group if chart.title == "Score"]
    assert score.series[0].y[-1] == 0.8
    redrawn = replace(bare, run={**bare.run, "rollout": {"redraws": 2}})
    assert "draws responses, to the prompts that it learns from, that score" in headline(redrawn)
    broken = replace(bare, phases=tuple({**phase, "score": float("nan")} for phase in bare.phases))
    assert "score" not in headline(broken)


def test_runs_that_draw_are_compared_by_their_scores() -> None:
    first = replace(ended(ONLINE, score=0.5, score_error=0.02, ceiling=0.7), path=Path("a"))
    second = replace(phases(score=(0.2, 0.8), kl=(0.01, 0.5)), path=Path("b"), evaluations=())
    result = parsed(first, second)
    assert "0.500 ± 0.020 1.40 0.700" in result.text
    assert "0.800 0.50 –" in result.text
    assert "More than noise?" not in result.text
    assert "Accuracy" not in result.text


def test_several_rewards_have_a_chart_each() -> None:
    def drawn(**rewards: tuple[float, float]) -> list[Chart]:
        return [
            chart for _, group in charts([("run", phases(**rewards))]) for chart in group if "Reward " in chart.title
        ]

    first, second = drawn(**{"reward r.py:isRight": (0.1, 0.9), "reward <b>": (0.5, 0.4)})
    assert (first.title, second.title) == ("Reward r.py:isRight", "Reward <b>")
    assert first.id != second.id
    assert first.series[0].y[-1] == 0.9
    assert not drawn(**{"reward f": (0.1, 0.9)})  # it is the score


def test_a_record_is_short_in_a_notebook() -> None:
    assert repr(replace(ONLINE, path=Path("runs/a"))).startswith("Record('runs/a', steps=")
    assert len(repr(ONLINE)) < 200

"""The page of `preftune trade-off` from the figures that are committed, and what those figures have to say."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from report.test_page import Parsed

from preftune.cli.trade_off import trade_off
from preftune.report.study import study_page
from preftune.tradeoff import panels
from preftune.tradeoff.page import study
from preftune.tradeoff.results import Results

COMMITTED = Path(__file__).parents[2] / "bench" / "results" / "trade-off.json"


@pytest.fixture(scope="module")
def results() -> Results:
    return msgspec.json.decode(COMMITTED.read_bytes(), type=Results)


def test_the_page_is_complete_and_loads_nothing(results: Results) -> None:
    content = study(results)
    page = Parsed(study_page(content))
    drawn = page.charts()
    assert set(drawn) == {chart.id for panel in content.panels for chart in panel.charts}
    assert {attributes.get("id") for _, attributes in page.elements} >= {f"chart-{name}" for name in drawn}
    assert not any({"src", "href"} & set(attributes) for _, attributes in page.elements)
    policy = next(
        attributes["content"] for tag, attributes in page.elements if tag == "meta" and "content" in attributes
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    for panel in content.panels:
        assert panel.title in page.text
        assert all(str(cell) in page.text for row in panel.rows for cell in row if cell and isinstance(cell, str))


def test_the_verb_writes_page_and_figures(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(panels, "compare", lambda: results)
    trade_off(out=tmp_path / "study")
    assert msgspec.convert(json.loads((tmp_path / "study" / "results.json").read_text()), Results) == results
    assert "Exploration" in (tmp_path / "study" / "trade-off.html").read_text()
    printed = capsys.readouterr().out
    assert str(tmp_path / "study" / "trade-off.html") in printed
    dpo = next(o for o in results.frontier if (o.method, o.beta) == ("DPO", 0.5))
    assert dpo.gap.text(3) in printed


def test_what_the_committed_figures_say(results: Results) -> None:
    """Right methods come to the optimum of their beta and wrong ones do not; the class of the reward model decides."""
    at = {(o.method, o.source): o for o in results.frontier if o.beta == results.beta}
    best = next(p for p in results.ceiling if p.beta == results.beta)
    for name in ("PPO", "RLOO", "GRPO", "online DPO, soft labels"):
        right = at[name, "true reward"]
        assert right.kl.value == pytest.approx(best.kl, rel=0.1), name
        assert right.gap.value < 0.02
    for name in ("online DPO, ranks", "GRPO as published"):
        wrong = at[name, "true reward"]
        assert wrong.kl.value - wrong.kl.half > 1.1 * best.kl
        assert wrong.gap.value - wrong.gap.half > 0.03
    linear, dpo = at["RLOO, linear model", "reward model"], at["DPO", "judged pairs"]
    table = at["optimum of a table model", "reward model"]
    assert linear.gap.value + linear.gap.half < dpo.gap.value - dpo.gap.half
    assert dpo.gap.value + dpo.gap.half < table.gap.value - table.gap.half
    ends = {course.method: course.distance[-1] for course in results.courses}
    assert max(ends[name] for name in ("RLOO", "PPO", "online DPO, soft labels")) < 0.02
    assert min(ends[name] for name in ("online DPO, ranks", "GRPO as published")) > 0.1
    found = {(r.method, r.pairs): r.share.value for r in results.rare}
    assert found["RLOO", None] > 2 * found["DPO", 10_000] > 10 * found["RLOO, linear model", 10_000]
    for model in results.shift:
        assert model.right_after.value < model.right_before.value - 0.05
    assert results.seconds < 120


@pytest.mark.slow
def test_the_figures_are_made_again(results: Results) -> None:
    """One run instead of five, without the intervals: the same verdicts as those committed."""
    again = panels.compare(runs=1)
    for before, now in zip(results.frontier, again.frontier, strict=True):
        assert (now.method, now.beta) == (before.method, before.beta)
        assert abs(now.gap.value - before.gap.value) < 0.1 + 4 * before.gap.half

"""The page of `preftune trade-off` from the figures that are committed, and what those figures have to say."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from report.test_page import Parsed

from preftune.cli.trade_off import trade_off
from preftune.demo.measure import ceiling_by_level
from preftune.frontier.measure import Frontier
from preftune.report.study import study_page
from preftune.tradeoff import language, panels
from preftune.tradeoff.page import at, study
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
    exact = replace(results, language=None)
    monkeypatch.setattr(panels, "compare", lambda: exact)
    monkeypatch.setattr(language, "compare_language", lambda: results.language)
    for folder, expected in (("exact", exact), ("study", results)):
        trade_off(out=tmp_path / folder, offline=expected is exact)
        figures = json.loads((tmp_path / folder / "results.json").read_text())
        assert msgspec.convert(figures, Results) == expected
        page = (tmp_path / folder / "trade-off.html").read_text()
        assert "Exploration" in page
        assert ("The methods on a language model" in page) is (expected is results)
        printed = capsys.readouterr().out
        assert ("a language model, beta 0.7" in printed) is (expected is results)
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


def test_what_the_language_model_says(results: Results) -> None:
    """Right methods on the true reward come near the optimum of their beta, ranks pass it, and all stay near the
    ceiling; a reward model's slope moves the optimum of what learns from it."""
    world = results.language
    assert world is not None
    by_method = {(t.outcome.method, t.outcome.source): t for t in world.trained}
    best = at(world, world.beta)
    for name in ("RLOO", "PPO", "online DPO, soft labels"):
        assert by_method[name, "true reward"].outcome.kl.value == pytest.approx(best.kl, rel=0.1), name
    assert by_method["online DPO, ranks", "true reward"].outcome.kl.value > 1.2 * best.kl
    assert world.slope < 1
    assert by_method["RLOO", "reward model"].outcome.kl.value < 0.9 * best.kl
    online = [trained.outcome for trained in world.trained if trained.outcome.source != "judged pairs"]
    assert all(abs(o.gap.value) < 0.1 + o.gap.half for o in online)
    assert len(by_method["PPO", "true reward"].models) == 3
    assert results.seconds + world.seconds < 480


def test_best_of_n_is_what_its_draws_are() -> None:
    rng = np.random.default_rng(0)
    reward = rng.integers(-3, 4, (2, 20_000)).astype(float)
    once, four = (language.best_of(count, reward) for count in (1, 4))
    assert (once.kl.value, once.reward.value) == pytest.approx((0.0, reward.mean()), abs=1e-9)
    assert four.reward.value == pytest.approx(reward.reshape(2, -1, 4).max(-1).mean(), abs=0.05)
    assert 0 < four.kl.value < np.log(4) - 3 / 4  # the bound of distinct rewards, which ties lie below
    assert four.gap.value > 0
    by_draw, by_level = Frontier.sampled(reward), ceiling_by_level(reward)
    for kl in (0.1, 1.0, 1.5):
        assert by_level.at_kl(kl).reward == pytest.approx(by_draw.at_kl(kl).reward, abs=1e-9)
    alone = ceiling_by_level(np.where(np.arange(2)[:, None] == 0, 1.0, reward))  # a value that a group has not
    assert np.isfinite([alone.at_kl(0.5).reward, alone.at_kl(9.0).reward]).all()


@pytest.mark.slow
def test_the_figures_are_made_again(results: Results) -> None:
    """One run instead of five, without the intervals: the same verdicts as those committed."""
    again = panels.compare(runs=1)
    for before, now in zip(results.frontier, again.frontier, strict=True):
        assert (now.method, now.beta) == (before.method, before.beta)
        assert abs(now.gap.value - before.gap.value) < 0.1 + 4 * before.gap.half

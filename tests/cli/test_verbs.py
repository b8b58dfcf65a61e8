"""Errors and tables of the verbs that need a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import save_model, save_pairs
from rich.console import Console

from preftune.cli.demo import _print
from preftune.cli.view import metrics_table
from preftune.demo.comparison import Comparison, Line, Written
from preftune.record.extras import ExtraChart
from preftune.record.schema import EVALUATION


@pytest.fixture
def run(tmp_path: Path, command):
    """`command` where there are m/ and p.jsonl."""
    save_model(tmp_path / "m")
    save_pairs(tmp_path / "p.jsonl", 12)
    return command


def test_a_config_of_another_size_is_named_with_both_sizes(run) -> None:
    config = json.loads(Path("m/config.json").read_text())
    Path("m/config.json").write_text(json.dumps({**config, "vocab_size": 70}))
    code, output = run("train", "model.path=m", "data.train=p.jsonl")
    assert code == 2
    assert "model.path: m: lm_head.weight is 64 x 32 in its weights, but 70 x 32 by its config.json." in output


def test_check_shows_the_prompts_and_phases_of_a_run_that_draws(run) -> None:
    Path("score.py").write_text("def score(prompt, responses, answer):\n    return [0.0 for _ in responses]\n")
    words = ["model.path=m", "data.train=p.jsonl", "objective=rloo", "rollout.max_tokens=4", "rollout.tasks=5",
             "batch.rows=2", "data.max_skipped=0.9"]  # fmt: skip
    code, output = run("check", *words, "reward.function=score.py:score")
    assert code == 0
    assert "3 phases of up to 5 prompts with 8 responses each, of at most 4 tokens" in output
    code, output = run("sweep", *words, "reward.function=score.py:score", "data.holdout=0.3", "evaluate.samples=0",
                       "optim.steps=1", "objective.beta=0.1,0.2")  # fmt: skip
    assert code == 0
    assert "score" in output.partition("run ")[2]
    code, output = run("check", *words, "reward.function=score.py:other")
    assert code == 2
    assert "reward.function: score.py has no other." in output


def test_the_table_of_metrics_is_a_line_a_metric_at_80_columns() -> None:
    of_reward = ("reward r.py:f", "reward_error r.py:f", "reward_best r.py:f")
    numbers = dict.fromkeys([*EVALUATION, *of_reward], -12345.678)
    console = Console(width=80, color_system=None)
    with console.capture() as shown:
        console.print(metrics_table(numbers, numbers, titles=("before", "after")))
    lines = shown.get().splitlines()
    assert len(lines) <= 1 + len(numbers)
    assert all(line.split()[0] in {"metric", *EVALUATION, "reward", "reward_error", "reward_best"} for line in lines)
    assert sum("r.py:f" in line for line in lines) == len(of_reward)


def test_wrapped_text_of_a_model_continues_below_its_beginning() -> None:
    sample = Written("The soup", ("kind " * 30, "warm " * 30, "mild " * 30))
    console = Console(width=80, color_system=None)
    models, line = ("before", "DPO", "RLOO"), Line("reward", ("1", "2", "3"), "")
    with console.capture() as shown:
        _print(console, Comparison(models, (line,), ExtraChart("", "", "", ()), (sample,)))
    table, _, below = shown.get().partition("The soup\n")
    assert [row.split() for row in table.splitlines() if row.strip()] == [list(models), ["reward", "1", "2", "3"]]
    first = ("   before   kind", "   DPO      warm", "   RLOO     mild")
    lines = [text for text in below.splitlines() if not text.startswith(first)]
    assert [text[:12] for text in lines] == [" " * 12] * 6

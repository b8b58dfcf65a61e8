"""The examples do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from preftune import files
from preftune.config.load import load
from preftune.demo import readable
from preftune.demo.tiny import make_tiny

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_run_file_is_read() -> None:
    run = load(EXAMPLES / "dpo.toml", ["model.path=tiny"])
    assert (run.model.path, run.batch.rows, run.optim.lr, run.evaluate.every) == ("tiny", 64, 1e-6, 100)


def test_the_frontier(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "frontier.py"), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    rewards = [float(line.split()[2]) for line in printed[1:6]]
    assert rewards == sorted(rewards)
    assert float(printed[6].split()[-4]) > 0


def test_tuning_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PREFTUNE_STORE", str(tmp_path / "store"))
    rng = np.random.default_rng(0)
    make_tiny(tmp_path / "model", readable.words(), width=16, layers=1)
    lines = []
    for dish in readable.DISHES[:8]:
        texts = [readable.review(rng) for _ in range(16)]
        for pair in readable.judged_pairs(readable.prompt(dish), texts, rng):
            lines.append(f'{{"prompt": "{pair.prompt}", "chosen": "{pair.chosen}", "rejected": "{pair.rejected}"}}\n')
    files.write(tmp_path / "pairs.jsonl", "".join(lines))
    tune = runpy.run_path(str(EXAMPLES / "tune.py"))["tune"]
    tune(str(tmp_path / "model"), str(tmp_path / "pairs.jsonl"), str(tmp_path / "run"))
    printed = capsys.readouterr().out
    assert printed.startswith("accuracy on held-out pairs 50.0% -> ")
    assert (tmp_path / "run" / "report.html").stat().st_size > 1e6

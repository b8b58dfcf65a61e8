"""The examples do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import load_file

import preftune
from preftune import files
from preftune.config.load import load
from preftune.demo import readable
from preftune.demo.tiny import make_tiny

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_run_file_is_read() -> None:
    run = load(EXAMPLES / "dpo.toml", ["model.path=mine"])
    assert (run.model.path, run.batch.rows, run.optim.lr, run.evaluate.every) == ("mine", 64, 1e-6, 100)


def test_the_frontier(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "frontier.py"), run_name="__main__")
    told = capsys.readouterr().out.splitlines()
    rewards = [float(line.split()[2]) for line in told[1:6]]
    assert rewards == sorted(rewards)
    assert float(told[6].split()[-4]) > 0


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and pairs of the readable world."""
    monkeypatch.setenv("PREFTUNE_STORE", str(tmp_path / "store"))
    rng = np.random.default_rng(0)
    make_tiny(tmp_path / "model", readable.words(), width=16, layers=1)
    lines = []
    for dish in readable.DISHES[:8]:
        texts = [readable.review(rng) for _ in range(16)]
        for pair in readable.judged_pairs(readable.prompt(dish), texts, rng):
            lines.append(f'{{"prompt": "{pair.prompt}", "chosen": "{pair.chosen}", "rejected": "{pair.rejected}"}}\n')
    files.write(tmp_path / "pairs.jsonl", "".join(lines))
    return tmp_path


@pytest.mark.parametrize(("example", "function"), [("tune", "tune"), ("own_objective", "main")])
def test_tuning_in_python(example: str, function: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune = runpy.run_path(str(EXAMPLES / f"{example}.py"))[function]
    tune(str(place / "model"), str(place / "pairs.jsonl"), str(place / "run"))
    assert capsys.readouterr().out.startswith("accuracy on held-out pairs 50.0% -> ")
    assert (place / "run" / "report.html").stat().st_size > 1e6


def test_a_loop_of_your_own_gives_the_bits_of_a_run(place: Path) -> None:
    main = runpy.run_path(str(EXAMPLES / "dpo_loop.py"))["main"]
    main(str(place / "model"), str(place / "pairs.jsonl"), str(place / "own"))
    words = {"model.path": place / "model", "data.train": place / "pairs.jsonl", "data.max_tokens": 64, "batch.rows": 8,
             "optim.lr": 1e-4, "out": place / "run"}  # fmt: skip
    preftune.train(load(None, [f"{key}={value}" for key, value in words.items()]))
    own, trained = (load_file(place / folder / "model.safetensors") for folder in ("own", "run/model"))
    start = load_file(place / "model" / "model.safetensors")
    assert own.keys() == trained.keys()
    assert all(np.array_equal(own[name], trained[name]) for name in trained)
    assert not np.array_equal(own["model.embed_tokens.weight"], start["model.embed_tokens.weight"])


def test_a_ppo_loop_of_your_own_gives_the_bits_of_a_run(place: Path) -> None:
    example = runpy.run_path(str(EXAMPLES / "ppo_loop.py"))
    example["main"](str(place / "model"), str(place / "pairs.jsonl"), str(place / "own"))
    words = {"model.path": place / "model", "data.train": place / "pairs.jsonl", "data.max_tokens": 48,
             "objective": "ppo", "rollout.responses": 4, "rollout.max_tokens": 16, "optim.lr": 1e-4, "value.lr": 1e-4,
             "optim.steps": 3, "out": place / "run"}  # fmt: skip
    run = load(None, [f"{key}={value}" for key, value in words.items()])
    preftune.train(replace(run, reward=example["kind_words"]))
    own, trained = (load_file(place / folder / "model.safetensors") for folder in ("own", "run/model"))
    start = load_file(place / "model" / "model.safetensors")
    assert all(np.array_equal(own[name], trained[name]) for name in trained)
    assert not np.array_equal(own["model.embed_tokens.weight"], start["model.embed_tokens.weight"])

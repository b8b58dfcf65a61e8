"""A small run on made rows: what the laws are held on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from making import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from preftune.config.load import convert
from preftune.config.run import Run


def save_model(path: Path, seed: int = 0) -> Path:
    """A tiny random Llama with a tokeniser of numbered words, as a plain folder."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 64)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(path)
    tiny(seed=seed).save_pretrained(path)
    return path


def save_pairs(path: Path, count: int, seed: int = 0) -> Path:
    """Rows whose chosen response has more low-numbered words, which a model can learn."""
    rng = np.random.default_rng(seed)
    say = lambda low, high, n: " ".join(f"w{i}" for i in rng.integers(low, high, n))  # noqa: E731
    rows = [
        {
            "id": f"r{i}",
            "prompt": say(3, 64, rng.integers(3, 9)),
            "chosen": " " + say(3, 30, rng.integers(2, 7)),
            "rejected": " " + say(30, 64, rng.integers(2, 7)),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/, pairs.jsonl and held.jsonl."""
    folder = tmp_path_factory.mktemp("world")
    save_model(folder / "model")
    save_pairs(folder / "pairs.jsonl", 50)
    save_pairs(folder / "held.jsonl", 12, seed=1)
    return folder


@pytest.fixture
def run_of(world: Path, tmp_path: Path) -> Callable[..., Run]:
    """A run on that world, with keys changed as dotted names with __ for the dot."""

    def make(**changed: object) -> Run:
        keys: dict[str, object] = {
            "model.path": str(world / "model"),
            "data.train": str(world / "pairs.jsonl"),
            "data.evaluate": str(world / "held.jsonl"),
            "reference.store": str(tmp_path / "store"),
            "out": str(tmp_path / "run"),
            "batch.rows": 8,
            "batch.tokens": 200,
            "optim.lr": 1e-3,
            "optim.epochs": 2,
        }
        keys |= {name.replace("__", "."): value for name, value in changed.items()}
        tree: dict[str, object] = {}
        for name, value in keys.items():
            *above, last = name.split(".")
            at = tree
            for part in above:
                at = at.setdefault(part, {})  # type: ignore[assignment]
            if value is not msgspec.UNSET:
                at[last] = value
        return convert(tree)

    return make

"""A small run on made rows: what the laws are held on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest
from making import save_model, save_pairs

from preftune.config.load import convert
from preftune.config.run import Run


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/, pairs.jsonl and held.jsonl."""
    folder = tmp_path_factory.mktemp("world")
    save_model(folder / "model")
    save_pairs(folder / "pairs.jsonl", 50)
    save_pairs(folder / "held.jsonl", 12, seed=1)
    return folder


@pytest.fixture
def run_of(keys_of: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """A run on that world in this test's folder, with keys changed as dotted names with __ for the dot."""
    return partial(keys_of, tmp_path)


@pytest.fixture(scope="session")
def keys_of(world: Path) -> Callable[..., Run]:
    """As `run_of`, in a folder that is named."""

    def make(folder: Path, **changed: object) -> Run:
        keys: dict[str, object] = {
            "model.path": str(world / "model"),
            "data.train": str(world / "pairs.jsonl"),
            "data.evaluate": str(world / "held.jsonl"),
            "reference.store": str(folder / "store"),
            "out": str(folder / "run"),
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

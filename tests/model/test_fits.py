"""What fits where, on shapes that people have."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from preftune.model.fits import WAYS, Demand, Fit, Way, fit, least_remedy, remedies, ways
from preftune.model.memory import Setup, expected

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import memory_table

GIB = 2**30
FULL, FULL_INT8, LORA, QLORA = WAYS


def on(name: str, way: Way, gpus: int, gibibytes: float, **keys: int) -> Fit:
    return fit(memory_table.shapes(name), way, gpus, Demand(gibibytes * GIB, **keys))


@pytest.mark.parametrize(
    ("name", "gibibytes", "fitting"),
    [
        ("Qwen2.5-0.5B", 24, {FULL, FULL_INT8, LORA, QLORA}),
        ("Qwen2.5-7B", 24, {LORA, QLORA}),
        ("Qwen2.5-7B", 80, {FULL_INT8, LORA, QLORA}),
        ("Qwen2.5-14B", 24, {QLORA}),
        ("Llama-3-70B", 80, {QLORA}),
        ("Mixtral-8x7B", 80, set()),
    ],
)
def test_what_fits_on_one_gpu(name: str, gibibytes: float, fitting: set[Way]) -> None:
    assert {way for way in WAYS if on(name, way, 1, gibibytes).tokens} == fitting


@pytest.mark.parametrize(
    ("name", "way", "gpus", "shard"),
    [
        ("Qwen2.5-0.5B", FULL, 8, "none"),
        ("Llama-3.1-8B", FULL_INT8, 8, "none"),
        ("Qwen2.5-14B", FULL_INT8, 8, "step"),
        ("Llama-3.1-8B", FULL, 8, "layer"),
        ("Qwen2.5-32B", FULL_INT8, 8, "layer"),
        ("Qwen2.5-32B", LORA, 8, "none"),
        ("Llama-3-70B", FULL_INT8, 8, "layer"),
        ("Llama-3-70B", LORA, 4, "layer"),
        ("Mixtral-8x7B", LORA, 4, "layer"),
        ("Llama-3-70B", QLORA, 8, "none"),
    ],
)
def test_what_is_divided_among_gpus_of_80(name: str, way: Way, gpus: int, shard: str) -> None:
    chosen = on(name, way, gpus, 80)
    assert chosen.tokens >= 512
    assert chosen.setup.shard == shard


def test_what_is_said_to_fit_does() -> None:
    for name in ("Qwen2.5-7B", "Qwen3-30B-A3B"):
        for way in WAYS:
            for gpus in (1, 4):
                demand = Demand(48 * GIB)
                chosen = fit(memory_table.shapes(name), way, gpus, demand)
                total = expected(memory_table.shapes(name), chosen.setup, chosen.tokens or demand.longest).total
                assert chosen.bytes == total
                assert (chosen.tokens > 0) == (total <= demand.usable)


def test_a_long_row_asks_for_recomputing_and_then_for_more() -> None:
    assert not on("Qwen2.5-7B", LORA, 1, 24).setup.checkpointing
    long = on("Qwen2.5-7B", LORA, 1, 24, longest=6000)
    assert long.setup.checkpointing
    assert long.tokens >= 6000
    assert not on("Qwen2.5-7B", LORA, 1, 24, longest=30_000).tokens
    assert on("Qwen2.5-7B", LORA, 1, 24).longest_row < 30_000
    assert on("Qwen2.5-7B", LORA, 1, 24, positions=1000).longest_row == 1000


def test_the_least_change_comes_first() -> None:
    shapes = memory_table.shapes("Qwen2.5-7B")
    own = Way(Setup(compute="bfloat16"), ())
    on_24, on_80 = (least_remedy(shapes, own, 1, Demand(size * GIB)) for size in (24, 80))
    assert on_24 is not None
    assert on_24.way.words == LORA.words
    assert on_80 is not None
    assert on_80.way.words == FULL_INT8.words
    assert least_remedy(shapes, own, 1, Demand(4 * GIB)) is None
    recomputed = least_remedy(shapes, LORA, 1, Demand(24 * GIB, longest=6000))
    assert recomputed is not None
    assert recomputed.way.words == ("model.checkpointing=true",)


def test_an_adapter_is_not_told_to_train_every_weight() -> None:
    assert {way.setup.weights for way in remedies(QLORA)} == {"nf4"}
    assert {way.setup.rank for way in remedies(LORA)} == {16}
    assert all(way.setup.copied == 5 for way in ways(Way(Setup(copied=5), ())))

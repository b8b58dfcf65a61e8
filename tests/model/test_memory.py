"""The formula of memory: exact where counts are published, and near measured peaks."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from making import tiny

from preftune.model import budget
from preftune.model.budget import LARGEST, SMALLEST, largest_pack, pack_budget
from preftune.model.memory import BYTES, Setup, expected
from preftune.model.shapes import shapes_of

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import formula
import memory_table

PUBLISHED = {  # parameters, from the model cards
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-7B": 7_615_616_512,
    "Llama-3.1-8B": 8_030_261_248,
    "gemma-2-9b": 9_241_705_984,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Mixtral-8x7B": 46_702_792_704,
    "Llama-3-70B": 70_553_706_496,
}
NF4, LORA = Setup("nf4", "bfloat16", rank=16), Setup("bfloat16", "bfloat16", rank=16)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_gives_the_published_number_of_weights(name: str) -> None:
    """Tied matrices once, and all experts."""
    assert memory_table.shapes(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("llama 10M", kind) for kind in formula.SETUPS),
        ("gemma2", "float32, recomputed"),
        ("mixtral, 8 experts, 2 active", "float32"),
        ("qwen3_moe, 16 experts, 4 active", "bfloat16"),
    ],
)
def test_the_formula_is_near_the_measured_peak(name: str, kind: str) -> None:
    cell = formula.case(name, kind, 512)
    assert 0.85 < cell["over"] < 1.3, cell


@pytest.mark.parametrize(
    ("setup", "bytes_a_weight"),
    [
        (Setup(), 16),
        (Setup(compute="bfloat16"), 18),
        (Setup("bfloat16", "bfloat16"), 12),
        (Setup("bfloat16", "bfloat16", state="int8"), 6.03),
        (Setup(compute="bfloat16", shard="step", gpus=8), 4 + 2 + 4 + 8 / 8),
        (Setup("bfloat16", "bfloat16", state="int8", shard="step", gpus=8), 4 + 2.03 / 8),
    ],
)
def test_every_weight_takes_what_the_page_says(setup: Setup, bytes_a_weight: float) -> None:
    shapes = memory_table.shapes("Qwen2.5-7B")
    memory = expected(shapes, setup, 0)
    copied = setup.weights == "float32" and setup.compute == "bfloat16"
    embeddings = 2 * shapes.embedding if copied else 0  # they are looked up, and not copied
    weighed = memory.weights + memory.gradients + memory.moments + embeddings
    assert weighed == pytest.approx(bytes_a_weight * shapes.parameters, rel=1e-3)


def test_layers_are_divided_but_for_those_in_work() -> None:
    shapes = memory_table.shapes("Llama-3-70B")
    setup = Setup("bfloat16", "bfloat16", state="int8", shard="layer", gpus=8)
    memory = expected(shapes, setup, 0)
    weighed = memory.weights + memory.gradients + memory.moments
    working = 2 * (2 * shapes.layer + shapes.embedding) + 2 * (shapes.layer + shapes.embedding)
    assert weighed == pytest.approx(6.03 * shapes.parameters / 8 + working, rel=1e-3)
    assert expected(shapes, replace(setup, gpus=16), 0).total < memory.total


def test_an_adapter_takes_its_base_and_sixteen_bytes_a_number() -> None:
    shapes = memory_table.shapes("Llama-3.1-8B")
    trained = 16 * shapes.sides
    assert trained == 41_943_040  # of rank 16 on all linear layers of this model, as peft counts
    memory = expected(shapes, LORA, 0)
    assert memory.weights + memory.gradients + memory.moments == 2 * shapes.parameters + 16 * trained
    quantized = expected(shapes, NF4, 0)
    assert quantized.weights == round(
        BYTES["nf4"] * shapes.linear + 2 * (shapes.parameters - shapes.linear) + 4 * trained
    )
    assert expected(shapes, replace(LORA, copied=shapes.parameters), 0) == memory  # its base is the reference


def test_experts_are_weights_and_few_of_them_activations() -> None:
    few, many, busy = (
        shapes_of(tiny("qwen3_moe", num_experts=experts, num_local_experts=experts, num_experts_per_tok=active))
        for experts, active in ((4, 2), (16, 2), (16, 4))
    )
    assert many.parameters > 1.5 * few.parameters
    assert many.parameters == busy.parameters
    assert many.saved == few.saved < busy.saved
    shapes = memory_table.shapes("Qwen3-30B-A3B")
    assert shapes.linear < 0.05 * shapes.parameters  # experts are no linear layers, so nf4 leaves them as they are


def test_further_models_and_frozen_weights_count() -> None:
    shapes = memory_table.shapes("Qwen2.5-0.5B")
    alone = expected(shapes, Setup(), 512)
    weights = 4 * shapes.parameters
    beside = expected(shapes, Setup(copied=shapes.parameters, frozen=1000, value=shapes.parameters), 512)
    assert beside.weights == alone.weights + 2 * weights + 4000
    assert (beside.gradients, beside.moments) == (2 * alone.gradients, 2 * alone.moments)
    half = expected(shapes, Setup(trained=shapes.parameters // 2), 512)
    assert (half.gradients, half.moments) == (alone.gradients // 2, alone.moments // 2)


def test_more_tokens_more_memory_and_recomputing_takes_less() -> None:
    shapes = memory_table.shapes("Llama-3.1-8B")
    totals = [expected(shapes, LORA, tokens).activations for tokens in (512, 2048, 8192)]
    assert totals == sorted(totals)
    again = expected(shapes, replace(LORA, checkpointing=True), 8192)
    assert again.activations < 0.3 * totals[-1]


def test_a_pack_is_as_large_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    module, setup = tiny(), Setup(device="cpu")
    shapes = shapes_of(module)
    monkeypatch.setattr(budget, "available_memory", lambda: 2**40)
    assert pack_budget(module, shapes, setup) == LARGEST["cpu"]
    monkeypatch.setattr(budget, "available_memory", lambda: 0)
    assert pack_budget(module, shapes, setup) == SMALLEST
    loaded = 4 * module.num_parameters()
    enough = expected(shapes, setup, 768).total - loaded
    monkeypatch.setattr(budget, "available_memory", lambda: round(enough / budget.USABLE["cpu"]) + 10)
    assert pack_budget(module, shapes, setup) == 768
    assert largest_pack(shapes, setup, enough + loaded, 10_000) == 768
    untrained = replace(setup, trained=0)
    assert pack_budget(module, shapes, untrained) == LARGEST["cpu"]  # which has no gradient, and keeps nothing


def test_a_quantized_matrix_counts_as_the_one_that_it_stands_for() -> None:
    """Its numbers are packed into a column of bytes."""
    module = tiny()
    before = shapes_of(module)
    layer = module.base_model.get_submodule("layers.0.self_attn.q_proj")
    packed = torch.zeros(layer.get_parameter("weight").numel() // 2, 1, dtype=torch.uint8)
    layer.register_parameter("weight", torch.nn.Parameter(packed, requires_grad=False))
    after = shapes_of(module)
    assert (after.linear, after.sides, after.saved) == (before.linear, before.sides, before.saved)
    assert after.parameters == before.parameters

"""What runs on a GPU against double precision on the CPU. Never run yet: bounds follow from the types' roundings.

`pytest -m gpu tests/gpu`, meant to take under four minutes.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from adapter_on_device import ADAPTERS, adapter_off
from making import groups, save_model, tiny
from on_device import FAMILIES, LAYERS, attention_off, family_off, head_off, ways_of

from preftune.model import attention, flex, fused, logp
from preftune.model.layout import Layout
from preftune.model.policy import recompute_activations, wrap
from preftune.pack.batch import collate

pytestmark = pytest.mark.gpu
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 2e-2}  # relative; products of fp32 may be of TF32


@pytest.mark.filterwarnings("ignore")  # of torch.compile
@pytest.mark.parametrize("layer", LAYERS)
def test_each_way_of_attention(layer: str, device: torch.device) -> None:
    for name, (way, dtype) in ways_of(LAYERS[layer], device).items():
        off = attention_off(LAYERS[layer], way, dtype, device, pairs=8)
        assert off.output < ALLOWED[dtype], name
        assert max(off.gradients) < ALLOWED[dtype], name
        if name == "paths bf16":
            output, _, *others = off.repeats  # the kernel adds gradients of queries by atomic operations
            assert output
            assert all(others)


@pytest.mark.parametrize("layer", ["full", "grouped", "window", "sinks", "window and sinks"])
def test_half_precision_goes_along_paths(layer: str, device: torch.device) -> None:
    kind = LAYERS[layer]
    way = attention.way_of(device, torch.bfloat16, (kind.width, kind.width), kind.shape, sinks=kind.sinks)
    assert way == "paths"


@pytest.mark.filterwarnings("ignore")
def test_flex_is_not_compiled_again_for_each_pack(device: torch.device) -> None:
    layer, counts = LAYERS["softcap"], []
    torch._dynamo.utils.counters.clear()
    for seed in range(4):
        layout = Layout.of(collate(groups(8, seed=seed, prompt=(60, 300), response=(5, 200)), device, 64))
        q, k = (torch.randn(1, n, len(layout.end), layer.width, device=device).bfloat16() for n in (8, 2))
        flex.in_flex(q, k, k, None, layout, layer.shape)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[3] == counts[1], counts


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("mode", ["kept", "made again", "frozen"])
@pytest.mark.parametrize(("hidden", "weight"), [("bfloat16", "float32"), ("bfloat16", "bfloat16"), ("float32",) * 2])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_the_head(
    triton: bool, mode: str, hidden: str, weight: str, softcap: float | None, device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(fused, "TRITON", triton)
    monkeypatch.setattr(logp, "KEEP_ELSEWHERE", 2**30 if mode == "kept" else 0)
    monkeypatch.setattr(logp, "CHUNK_ELSEWHERE", 2**22)
    off = head_off(device, rows=300, width=256, vocab=9000, hidden=getattr(torch, hidden), softcap=softcap,
                   weight=getattr(torch, weight), trained=mode != "frozen")  # fmt: skip
    assert off.logp < 1e-3  # products of half precision are summed in fp32, so only the order differs
    assert max(off.hidden, off.weight) < ALLOWED[getattr(torch, hidden)]


def test_gradients_in_fp32_grow_in_place(device: torch.device) -> None:
    assert logp.adds_wide(device)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family(family: str, compute: str, device: torch.device) -> None:
    off = family_off(family, getattr(torch, compute), device)
    assert off.layout == "trie"
    assert off.gradient < (0.2 if compute == "bfloat16" else 1e-3)  # the models are made rough, so that faults show
    assert off.moved > 0


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize(("weights", "kind"), ADAPTERS)
def test_adapters(weights: str, kind: str, compute: str, device: torch.device, tmp_path: Path) -> None:
    if weights != "float32":
        pytest.importorskip("bitsandbytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bitsandbytes and torch, about each other
        off = adapter_off(weights, kind, getattr(torch, compute), device, save_model(tmp_path))
    assert off.layout == "trie"
    assert off.worst < (0.25 if compute == "bfloat16" else 1e-3)
    assert off.gradient < (0.2 if compute == "bfloat16" else 1e-3)


def test_a_layer_that_is_computed_again_keeps_its_output(device: torch.device) -> None:
    rows, gradients = groups(6, seed=11, prompt=(20, 90), response=(3, 60)), []
    for checkpointing in (False, True):
        policy, _ = wrap(tiny("llama", head_dim=16).to(device), "trie", torch.bfloat16)
        if checkpointing:
            recompute_activations(policy.module)
        policy.token_logp(policy.batch(rows)).sum().backward()
        gradients.append([p.grad for p in policy.module.parameters() if p.grad is not None])
    for again, kept in zip(*gradients, strict=True):
        assert torch.allclose(again, kept, rtol=1e-2, atol=1e-2 * float(kept.abs().max()))


def test_a_pack_waits_for_the_device_once(device: torch.device) -> None:
    """And only where the loss asks for the log-probabilities: collating, forward and backward pass ask for nothing."""
    policy, _ = wrap(tiny("qwen3", head_dim=16).to(device), "trie", torch.bfloat16)
    rows = groups(6, seed=11, prompt=(20, 90), response=(3, 60))
    policy.token_logp(policy.batch(rows)).sum().backward()  # what is worked out once a process
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = policy.batch(rows)
        logp_of_responses = batch.sum(policy.token_logp(batch))
        logp_of_responses.backward(torch.ones_like(logp_of_responses))
    finally:
        torch.cuda.set_sync_debug_mode("default")

"""Attention by one variable-length call, with a stand-in for the kernel: all around it is held to the definition."""

from __future__ import annotations

import pytest
import torch
from dense import PACKS, assert_dense, dense
from flash import backward, forward
from making import groups, tiny

from preftune.model import attention, varlen
from preftune.model.layout import Layout, Shape
from preftune.model.policy import recompute_activations, wrap
from preftune.pack.batch import collate


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The kernel's place taken; the list counts forward calls."""
    calls: list[int] = []
    monkeypatch.setattr(varlen, "flash_forward", lambda *args: calls.append(1) or forward(*args))
    monkeypatch.setattr(varlen, "flash_backward", backward)
    return calls


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("window", [None, 13])
@pytest.mark.parametrize("sunk", [False, True])
@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.usefixtures("stand_in")
def test_paths_equal_the_mask(
    pack: str, window: int | None, sunk: bool, key_heads: int, dtype: torch.dtype, allowed: float
) -> None:
    shape = Shape(0.25, window=window)
    assert_dense(varlen.AlongPaths.apply, pack, shape, dtype, allowed, key_heads=key_heads, sunk=sunk)


@pytest.mark.parametrize("multiple", [32, 1000])
@pytest.mark.usefixtures("stand_in")
def test_rows_of_the_fill_are_numbers(multiple: int) -> None:
    """A row that no sequence of the call has would keep what was in memory; a NaN there times 0 is a NaN of weights."""
    layout = Layout.of(collate(PACKS["pairs"], multiple=multiple))
    assert len(layout.end) > layout.trie.tokens
    q, k, v = (torch.randn(1, n, len(layout.end), 16, dtype=torch.float64, requires_grad=True) for n in (6, 2, 2))
    out = varlen.AlongPaths.apply(q, k, v, None, layout, Shape(0.25))
    rows = slice(layout.trie.tokens)
    exact = dense(q, k, v, None, layout, Shape(0.25))
    assert bool(out.detach().isfinite().all())
    assert torch.allclose(out[:, rows], exact[:, rows], atol=1e-12)
    upstream = torch.randn_like(exact)
    upstream[:, layout.trie.tokens :] = 0
    for ours, right in zip(torch.autograd.grad(out, [q, k, v], upstream),
                           torch.autograd.grad(exact, [q, k, v], upstream), strict=True):  # fmt: skip
        assert torch.allclose(ours, right, atol=1e-12)


def test_gradients_of_shared_rows_are_summed_in_fp32_and_in_the_order_of_the_paths() -> None:
    paths = Layout.of(collate(PACKS["ranking"])).varlen
    assert int(paths.counts.max()) == 7
    d_paths = torch.randn(len(paths.keys), 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = torch.zeros(len(paths.counts), 2, 8)
    for place, row in enumerate(paths.keys.tolist()):
        expected[row] += d_paths[place].float()
    summed = varlen.sum_over_paths(d_paths, paths)
    assert summed.dtype == torch.float32
    assert torch.equal(summed, expected)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, stand_in: list[int]) -> list[int]:
    """Models take the way that they would take in half precision on a GPU, where the stand-in counts calls."""
    monkeypatch.setattr(varlen, "takes", lambda *_, **__: True)
    right = attention.way_of
    monkeypatch.setattr(
        attention, "way_of", lambda _, *rest, **more: right(torch.device("cuda"), torch.bfloat16, *rest[1:], **more)
    )
    return stand_in


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gpt_oss"])
def test_models_along_paths_give_what_they_give_in_blocks(
    family: str, checkpointing: bool, as_on_a_gpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a layer that is computed again takes the output that it has kept."""
    rows = groups(4, seed=11, prompt=(20, 40), response=(3, 30))
    ways = []
    for way in ("paths", "blocks"):
        policy, _ = wrap(tiny(family), "trie")
        if checkpointing:
            recompute_activations(policy.module)
        logp = policy.token_logp(collate(rows, multiple=64))
        logp.sum().backward()
        ways.append([logp.detach(), *(p.grad for p in policy.module.parameters() if p.grad is not None)])
        if way == "paths":
            assert len(as_on_a_gpu) == policy.module.config.num_hidden_layers
        monkeypatch.undo()
    for ours, right in zip(*ways, strict=True):
        assert torch.allclose(ours, right, atol=1e-4 * max(1.0, float(right.abs().max())))


def test_each_layer_takes_the_way_that_fits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    varlen.takes.cache_clear()
    gpu, half, full = torch.device("cuda"), torch.bfloat16, Shape(0.1)
    assert attention.way_of(torch.device("cpu"), half, (64, 64), full, sinks=False) == "blocks"
    assert attention.way_of(gpu, half, (64, 64), full, sinks=False) == "paths"
    assert attention.way_of(gpu, half, (64, 64), Shape(0.1, window=9), sinks=True) == "paths"
    assert attention.way_of(gpu, half, (64, 64), Shape(0.1, softcap=50.0), sinks=False) == "flex"
    assert attention.way_of(gpu, half, (192, 128), full, sinks=False) == "blocks"
    assert attention.way_of(gpu, torch.float32, (64, 64), full, sinks=False) == "flex"
    assert attention.way_of(gpu, torch.float64, (64, 64), full, sinks=False) == "blocks"
    assert attention.way_of(gpu, half, (80, 80), full, sinks=False) == "paths"
    assert attention.way_of(gpu, half, (20, 20), full, sinks=False) == "blocks"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    varlen.takes.cache_clear()
    assert attention.way_of(gpu, half, (64, 64), full, sinks=False) == "flex"
    varlen.takes.cache_clear()


def test_the_kernel_has_the_arguments_that_it_is_called_with() -> None:
    """On the meta device its shapes are worked out and nothing is computed."""
    layout = Layout.of(collate(PACKS["pairs"]))
    on_meta = layout.varlen._replace(**{name: getattr(layout.varlen, name).to("meta") for name in ("cu_q", "cu_k")})
    q = torch.empty(len(layout.end), 6, 16, dtype=torch.bfloat16, device="meta")
    k = torch.empty(len(layout.varlen.keys), 2, 16, dtype=torch.bfloat16, device="meta")
    out, lse = varlen.flash_forward(q, k, k, on_meta, Shape(0.25, window=9))
    assert (out.shape, lse.shape) == (q.shape, (6, len(q)))
    grads = varlen.flash_backward(out, q, k, k, out, lse, on_meta, Shape(0.25))
    assert [g.shape for g in grads] == [q.shape, k.shape, k.shape]

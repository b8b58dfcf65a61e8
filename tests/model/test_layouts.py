"""One trajectory: whatever the layout, kernel and packing, the same numbers as one plain forward pass a response."""

from __future__ import annotations

import itertools
import warnings
import weakref

import pytest
import torch
from dense import PACKS, assert_dense, dense
from making import group, groups, tiny

from preftune.errors import UserError
from preftune.model import attention, flex
from preftune.model.layout import Layout, Shape
from preftune.model.policy import recompute_activations, wrap
from preftune.model.verify import plain_logp, verify_layout
from preftune.pack.batch import collate
from preftune.pack.trie import visible

SHARING = [
    "llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "phi", "phi3",
    "olmo2", "smollm3", "granite", "starcoder2", "glm4", "cohere", "cohere2", "gpt2", "gpt_neox", "opt", "gpt_oss",
]  # fmt: skip
PADDED = ["bloom", "falcon", "stablelm", "lfm2", "qwen3_next"]


@pytest.mark.filterwarnings("ignore")  # transformers warns about missing kernels of some families
@pytest.mark.parametrize("family", SHARING + PADDED)
def test_every_family_is_right_or_padded(family: str) -> None:
    policy, why = wrap(tiny(family), "auto")
    batch = collate(groups(4, seed=1))
    policy, off = verify_layout(policy, batch)
    assert policy.layout == ("trie" if family in SHARING else "padded"), why
    assert off.worst < 5e-5
    assert float(plain_logp(policy, batch).std()) > 0.5  # a flat model would agree with anything


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_cannot_share_refuses_when_it_must() -> None:
    with pytest.raises(UserError, match="conv"):
        wrap(tiny("lfm2"), "trie")


def grads(policy, made, seed: int = 0, multiple: int = 1) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Token log-probs, and the gradient of a random weighting of the responses."""
    policy.module.zero_grad()
    batch = collate(made, multiple=multiple)
    values = policy.token_logp(batch)
    weight = torch.randn(batch.responses, dtype=values.dtype, generator=torch.Generator().manual_seed(seed))
    (batch.sum(values) * weight).sum().backward()
    return values.detach(), [p.grad.clone() for p in policy.module.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_trie_and_padded_agree_in_double_with_gradients(family: str) -> None:
    made = groups(4, seed=2) + groups(1, seed=2)
    trie = grads(wrap(tiny(family, dtype=torch.float64), "auto")[0], made)
    padded = grads(wrap(tiny(family, dtype=torch.float64), "padded")[0], made)
    assert float((trie[0] - padded[0]).abs().max()) < 1e-12
    for a, b in zip(trie[1], padded[1], strict=True):
        assert float((a - b).abs().max()) <= 1e-12 * max(1.0, float(b.abs().max()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral", "lfm2"])
def test_fill_changes_nothing(family: str) -> None:
    made = groups(3, seed=2, prompt=(20, 40), response=(3, 9))
    bare = collate(made)
    for multiple in (32, 2 * bare.tokens + 1):
        filled = collate(made, multiple=multiple)
        read = Layout.of(filled).read
        assert filled.tokens == bare.tokens
        assert {len(filled.ids), len(filled.end), len(filled.position)} == {-(-bare.tokens // multiple) * multiple}
        assert len(filled.source) % multiple == len(filled.target) % multiple == 0
        assert read is None or (len(read) % multiple == 0 and set(bare.source.tolist()) <= set(read.tolist()))
        policy = wrap(tiny(family), "auto")[0]
        (logp, by_weights), (other, others) = grads(policy, made), grads(policy, made, multiple=multiple)
        assert float((logp - other).abs().max()) < 1e-5
        for a, b in zip(by_weights, others, strict=True):
            assert float((a - b).abs().max()) <= 1e-5 * max(1.0, float(b.abs().max()))


def test_packs_are_filled_where_a_shape_costs() -> None:
    assert wrap(tiny(), "auto")[0].multiple == 1
    assert wrap(tiny(), "auto", torch.bfloat16)[0].multiple == 128
    assert wrap(tiny(dtype=torch.bfloat16), "auto")[0].multiple == 128


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("more", [{}, {"softcap": 3.0}, {"window": 13}, {"softcap": 2.0, "window": 70}], ids=str)
@pytest.mark.parametrize("sunk", [False, True])
@pytest.mark.parametrize(
    ("dtype", "allowed"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
def test_blocks_equal_the_mask(pack: str, more: dict, sunk: bool, dtype: torch.dtype, allowed: float) -> None:
    assert_dense(attention.InBlocks.apply, pack, Shape(0.25, **more), dtype, allowed, key_heads=2, sunk=sunk)


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("more", [{}, {"softcap": 3.0}, {"window": 13}], ids=str)
@pytest.mark.parametrize("sunk", [False, True])
def test_flex_attention_equals_the_mask(pack: str, more: dict, sunk: bool) -> None:
    """Forward only: on a CPU it has no backward pass."""
    layout, shape = Layout.of(collate(PACKS[pack])), Shape(0.25, **more)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, len(layout.end), 16) for heads in (6, 2, 2))
    sinks = torch.randn(6) if sunk else None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow when it is not compiled
        out = flex.in_flex(q, k, v, sinks, layout, shape)
    assert torch.allclose(out.double(), dense(q, k, v, sinks, layout, shape), atol=1e-5)


@pytest.mark.parametrize("window", [None, 40, 200])
def test_the_block_mask_of_flex_attention_is_that_of_the_definition(window: int | None) -> None:
    made = [*groups(5, seed=3, prompt=(50, 200), response=(10, 60)), group(range(400), range(3, 60), range(90))]
    layout = Layout.of(collate(made))
    some, whole = flex.blocks_met(layout.trie.end, layout.trie.position, window)
    row = torch.arange(-(-len(layout.end) // flex.SIDE) * flex.SIDE)
    end, position = (torch.nn.functional.pad(x, (0, len(row) - len(layout.end))) for x in (layout.end, layout.position))
    sees = visible(row[:, None], row[None, :], end)
    if window is not None:
        sees &= position[:, None] - position[None, :] < window
    tiles = sees.view(len(some), flex.SIDE, len(some), flex.SIDE).transpose(1, 2).flatten(2)
    assert torch.equal(torch.from_numpy(whole), tiles.all(2))
    assert bool((torch.from_numpy(some) | ~tiles.any(2)).all())  # none that is seen is left out
    if window is None:
        assert torch.equal(torch.from_numpy(some), tiles.any(2))


def test_paths_for_variable_length_kernels_cover_the_trie() -> None:
    made = [*groups(3, seed=7), group([3, 4, 5], [6, 7, 8, 9], [6, 7])]  # one response is the beginning of another
    layout = Layout.of(collate(made))
    paths = layout.varlen
    path, q, k = paths.keys, paths.cu_q.tolist(), paths.cu_k.tolist()
    assert q[-1] == len(layout.end)
    sees = torch.zeros(len(layout.end), len(layout.end), dtype=torch.bool)
    for a, b, c, d in zip(q[:-1], q[1:], k[:-1], k[1:], strict=True):
        keys = path[c:d]
        for row in range(a, b):  # the kernel aligns queries and keys at their ends
            sees[row, keys[: len(keys) - (b - 1 - row)]] = True
    row = torch.arange(len(layout.end))
    assert torch.equal(sees, visible(row[:, None], row[None, :], layout.end))
    assert paths.max_q == max(b - a for a, b in itertools.pairwise(q))
    assert paths.max_k == layout.depth


def test_a_batch_has_one_layout_that_goes_with_it() -> None:
    batch = collate(groups(3, seed=7))
    layout = Layout.of(batch)
    assert Layout.of(batch) is layout
    assert layout.path_runs(None) is layout.path_runs(None)
    gone = weakref.ref(layout)
    del batch, layout
    assert gone() is None


def test_neighbors_never_leak() -> None:
    """NaN in one row's embeddings reaches no other row, and no gradient reaches a neighbor."""
    policy, _ = wrap(tiny(), "auto")
    made = groups(3, seed=9, shared=0)
    alone = policy.token_logp(collate(made[:1])).detach()
    poison = group([60, 61], [62], [63])
    embed = policy.module.get_input_embeddings().weight
    with torch.no_grad():
        embed[60:] = float("nan")
    clean = [g for g in made if max(g.prompt.max(), *(r.max() for r in g.responses)) < 60]
    assert clean
    policy.module.tie_weights()
    batch = collate([*clean, poison])
    by_itself = collate(clean)
    hidden, expected = policy.hidden(batch), policy.hidden(by_itself)
    same = {tuple(batch.ids[torch.as_tensor(p)].tolist()): p for p in batch.trie.paths}
    for path in by_itself.trie.paths:
        same_rows = same[tuple(by_itself.ids[torch.as_tensor(path)].tolist())]
        assert torch.allclose(hidden[same_rows], expected[path], atol=1e-4)
    assert torch.isfinite(alone).all()
    assert torch.isnan(hidden).any()


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_gradient_checkpointing_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And attention is not computed twice: its second pass finds what the first has kept."""
    made, computed = groups(3, seed=11), []
    plain = grads(wrap(tiny(family), "auto")[0], made)
    policy, _ = wrap(tiny(family), "auto")
    recompute_activations(policy.module)
    right = attention._by_token
    monkeypatch.setattr(attention, "_by_token", lambda *args: computed.append(1) or right(*args))
    again = grads(policy, made)
    assert torch.equal(plain[0], again[0])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain[1], again[1], strict=True))
    assert len(computed) == 2 * policy.module.config.num_hidden_layers  # a layer: its output, and queries' gradient

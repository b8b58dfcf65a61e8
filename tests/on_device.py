"""How far what runs on a device is from double precision on the CPU: numbers that tests/gpu bounds and bench/gpu.py
writes down."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from making import groups, tiny
from torch import Tensor
from transformers import PreTrainedModel

from preftune.model import attention, flex, varlen
from preftune.model.heads import LanguageHead
from preftune.model.layout import Layout, Shape
from preftune.model.logp import head_logp
from preftune.model.policy import Policy, trainable, wrap
from preftune.model.verify import verify_layout
from preftune.pack.batch import collate
from preftune.tokens.groups import TokenGroup

FAMILIES = ("llama", "qwen3", "qwen2", "mistral", "gemma2", "gemma3_text", "gpt_oss", "qwen3_moe")
Way = Callable[[Tensor, Tensor, Tensor, Tensor | None, Layout, Shape], Tensor]


class Attention(NamedTuple):
    """A kind of layer: heads of queries and of keys, their width, and what its family does to scores."""

    heads: int
    key_heads: int
    width: int
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    @property
    def shape(self) -> Shape:
        return Shape(self.width**-0.5, self.softcap, self.window)


LAYERS = {
    "full": Attention(8, 8, 64),
    "grouped": Attention(14, 2, 64),
    "wide": Attention(4, 2, 128),
    "window": Attention(8, 2, 64, window=100),
    "sinks": Attention(8, 2, 64, sinks=True),
    "window and sinks": Attention(8, 2, 64, window=100, sinks=True),
    "softcap": Attention(8, 2, 64, softcap=20.0),
    "softcap and window": Attention(8, 2, 64, softcap=20.0, window=100),
}


def rows_of_size(pairs: int, vocab: int = 500) -> list[TokenGroup]:
    """Pairs with prompts that begin alike; of the length of dialogues from 6 pairs on."""
    if pairs < 6:
        return groups(pairs, prompt=(10, 40), response=(3, 20), vocab=vocab)
    return groups(pairs, prompt=(60, 300), response=(5, 200), vocab=vocab, shared=16)


def relative(ours: Tensor, exact: Tensor) -> float:
    """The norm of the difference over that of what is exact."""
    exact = exact.detach().double().cpu()
    return float((ours.detach().double().cpu() - exact).norm() / exact.norm())


def ways_of(layer: Attention, device: torch.device) -> dict[str, tuple[Way, torch.dtype]]:
    """The ways that a device has for a layer, with the type of the numbers, by name."""
    ways: dict[str, tuple[Way, torch.dtype]] = {"blocks fp32": (attention.InBlocks.apply, torch.float32)}  # type: ignore[dict-item]
    if device.type == "cuda":
        if layer.softcap is None and varlen.takes(device, layer.width, layer.width, sinks=layer.sinks):
            ways["paths bf16"] = (varlen.AlongPaths.apply, torch.bfloat16)  # type: ignore[assignment]
        ways |= {"flex bf16": (flex.in_flex, torch.bfloat16), "flex fp32": (flex.in_flex, torch.float32)}
    return ways


class AttentionOff(NamedTuple):
    """Relative to double precision; gradients: of queries, keys, values and sinks. repeats: whether a second time gives
    the same bits, of the output and of each gradient."""

    output: float
    gradients: list[float]
    repeats: list[bool]


def attention_off(layer: Attention, way: Way, dtype: torch.dtype, device: torch.device, pairs: int) -> AttentionOff:
    """One layer's attention over a pack of pairs, forward and back, filled up as packs on a GPU are."""
    rows = rows_of_size(pairs)
    there, here = (Layout.of(collate(rows, where, 64)) for where in (device, "cpu"))
    made, kinds = torch.Generator().manual_seed(0), (layer.heads, layer.key_heads, layer.key_heads)
    inputs = [torch.randn(1, heads, len(here.end), layer.width, generator=made).bfloat16() for heads in kinds]
    inputs += [torch.randn(layer.heads, generator=made).bfloat16()] if layer.sinks else []
    upstream = torch.randn(1, len(here.end), layer.heads, layer.width, generator=made).bfloat16()
    upstream[:, here.trie.tokens :] = 0  # nobody reads the fill

    def run(way: Way, layout: Layout, dtype: torch.dtype) -> list[Tensor]:
        q, k, v, *sinks = leaves = [x.to(layout.end.device, dtype).requires_grad_() for x in inputs]
        out = way(q, k, v, sinks[0] if sinks else None, layout, layer.shape)
        gradients = torch.autograd.grad(out, leaves, upstream.to(out))
        return [out.detach()[:, : here.trie.tokens], *gradients]

    exact = run(attention.InBlocks.apply, here, torch.float64)  # type: ignore[arg-type]  held by test_layouts.py
    first, second = run(way, there, dtype), run(way, there, dtype)
    output, *gradients = [relative(ours, right) for ours, right in zip(first, exact, strict=True)]
    return AttentionOff(output, gradients, [torch.equal(a, b) for a, b in zip(first, second, strict=True)])


class HeadOff(NamedTuple):
    """logp: nats, at the worst token; hidden, weight: relative errors of the gradients, the latter 0 where frozen."""

    logp: float
    hidden: float
    weight: float


def head_off(
    device: torch.device, *, rows: int, width: int, vocab: int, hidden: torch.dtype, weight: torch.dtype, trained: bool,
    softcap: float | None = None,
) -> HeadOff:  # fmt: skip
    """The head's log-probabilities and gradients against double precision on the same numbers."""
    made = torch.Generator().manual_seed(0)
    h, W = (
        torch.randn(rows, width, generator=made).to(hidden),
        (torch.randn(vocab, width, generator=made) / 8).to(weight),
    )
    target, upstream = torch.randint(vocab, (rows,), generator=made), torch.randn(rows, generator=made)
    leaves = h.to(device).requires_grad_(), W.to(device).requires_grad_(trained)
    logp = head_logp(leaves[0], LanguageHead(leaves[1], softcap=softcap), target.to(device))
    learning = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad(logp, learning, upstream.to(logp))
    exact_h, exact_W = h.double().requires_grad_(), W.to(hidden).double().requires_grad_()  # products are of `hidden`
    logits = exact_h @ exact_W.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    exact = torch.log_softmax(logits, 1).gather(1, target[:, None])[:, 0]
    rights = torch.autograd.grad(exact, [exact_h, exact_W], upstream.double())
    off = [relative(ours, right) for ours, right in zip(gradients, rights, strict=False)]
    return HeadOff(
        float((logp.detach().cpu().double() - exact.detach()).abs().max()), off[0], off[1] if trained else 0.0
    )


class FamilyOff(NamedTuple):
    """layout: that the start check leaves; worst, mean: nats a token off plain passes; gradient: relative to that of
    padded rows; moved: how far one update moved the weights; repeats: whether it gives the same bits again."""

    layout: str
    worst: float
    mean: float
    gradient: float
    moved: float
    repeats: bool


def family_off(family: str, compute: torch.dtype, device: torch.device, pairs: int = 8) -> FamilyOff:
    """A small random model of a family, with heads of 16, as the loop uses it."""
    rows = groups(pairs, prompt=(10, 60), response=(3, 40))

    def made() -> PreTrainedModel:
        return tiny(family, head_dim=16).to(device)  # pyright: ignore[reportReturnType]

    policy = trainable(wrap(made(), "auto", compute)[0], checkpointing=False)
    policy, off = verify_layout(policy, policy.batch(rows[:3]))
    sides = [gradient(policy, rows), gradient(wrap(made(), "padded", compute)[0], rows)]
    moves = [one_update(trainable(wrap(made(), "auto", compute)[0], checkpointing=False), rows) for _ in range(2)]
    moved = float((moves[0] - flat(list(made().parameters()))).norm())
    return FamilyOff(policy.layout, off.worst, off.mean, relative(*sides), moved, torch.equal(*moves))


def flat(tensors: list[Tensor]) -> Tensor:
    """(numbers of all tensors,) on the host."""
    return torch.cat([tensor.detach().flatten().float().cpu() for tensor in tensors])


def gradient(policy: Policy, rows: list[TokenGroup]) -> Tensor:
    """(weights,) of a sum of log-ratios of the two responses of each row."""
    policy.module.zero_grad()
    batch = policy.batch(rows)
    logp = batch.sum(policy.token_logp(batch)).view(-1, 2)
    (logp[:, 0] - logp[:, 1]).sum().backward()
    return flat([torch.zeros_like(p) if p.grad is None else p.grad for p in policy.module.parameters()])


def one_update(policy: Policy, rows: list[TokenGroup]) -> Tensor:
    """(weights,) after a step of AdamW on that gradient."""
    optimizer = torch.optim.AdamW(policy.module.parameters(), lr=1e-3)
    gradient(policy, rows)
    optimizer.step()
    return flat(list(policy.module.parameters()))

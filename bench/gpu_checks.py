"""Stages 0 to 4 of bench/gpu.py: the device's ceilings, and each path against double precision."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from making import groups
from on_device import FAMILIES, LAYERS, attention_off, family_off, head_off, relative, rows_of_size, ways_of

from preftune.model import flex, fused, logp
from preftune.model.heads import LanguageHead
from preftune.model.layout import Layout
from preftune.model.logp import head_logp
from preftune.pack.batch import collate

Numbers = dict[str, object]


class Size(NamedTuple):
    """How large the work of all stages is. matrix: side; copied: numbers; pairs: of an attention pack; head: rows,
    width, vocabulary; model: width, MLP width, layers, heads of the stages that measure speed; large: of the last;
    packs: pairs of each pack whose time is taken; batches: pairs that the peer takes at a time; steps: updates."""

    matrix: int
    copied: int
    pairs: int
    head: tuple[int, int, int]
    vocab: int
    model: tuple[int, int, int, int]
    large: tuple[int, int, int, int]
    packs: tuple[int, ...]
    batches: tuple[int, ...]
    steps: int
    tokens: int


FULL = Size(8192, 2**30, 12, (2048, 896, 151936), 151936, (896, 4864, 24, 14), (1536, 8960, 28, 12), (4, 8, 16, 32),
            (1, 2, 4), 4, 8192)  # fmt: skip
TOY = Size(64, 2**12, 3, (40, 32, 300), 300, (64, 96, 2, 2), (64, 128, 3, 2), (2,), (2,), 2, 512)


def milliseconds(work: Callable[[], object], device: torch.device, repeat: int = 5) -> float:
    """Wall time of a call, after two that are not counted."""
    for _ in range(2):
        work()
    wait(device)
    began = time.perf_counter()
    for _ in range(repeat):
        work()
    wait(device)
    return (time.perf_counter() - began) / repeat * 1e3


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(device: torch.device, size: Size) -> Numbers:
    """What products in bf16 and copies come to here."""
    a, b = (torch.randn(size.matrix, size.matrix, device=device).bfloat16() for _ in range(2))
    x = torch.empty(size.copied, dtype=torch.bfloat16, device=device)
    return {
        "bf16 TFLOP/s": 2 * size.matrix**3 / milliseconds(lambda: a @ b, device) / 1e9,
        "copy TB/s": 4 * size.copied / milliseconds(x.clone, device) / 1e9,
        "fp32 += bf16 @ bf16 in place": logp.adds_wide(device),
    }


def attention(device: torch.device, size: Size) -> Numbers:
    """Each way of each kind of layer: errors, whether a second time gives the same bits, and time forward and back."""
    numbers: Numbers = {}
    for name, layer in LAYERS.items():
        for way, (function, dtype) in ways_of(layer, device).items():
            if way.startswith("flex") and layer.softcap is None and name != "grouped":
                continue  # it is compiled anew for each kind of layer: stage 3 and this one case suffice
            numbers[f"{name}, {way}"] = guarded(partial(one_way, layer, function, dtype, device, size))
    return numbers


def one_way(layer, way, dtype, device: torch.device, size: Size) -> Numbers:
    off = attention_off(layer, way, dtype, device, size.pairs)
    layout = Layout.of(collate(rows_of_size(size.pairs), device, 64))
    shapes = [(1, heads, len(layout.end), layer.width) for heads in (layer.heads, layer.key_heads, layer.key_heads)]
    inputs = [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]
    sinks = torch.randn(layer.heads, device=device).to(dtype).requires_grad_() if layer.sinks else None
    work = lambda: way(*inputs, sinks, layout, layer.shape).sum().backward()  # noqa: E731
    return {**off._asdict(), "rows": len(layout.end), "ms": milliseconds(work, device, 3)}


def guarded(work: Callable[[], Numbers]) -> Numbers:
    """What a part of a stage measures, or why it does not, so that the other parts are measured still."""
    try:
        return work()
    except Exception as error:  # one that is not foreseen is what these stages are to show
        return {"error": f"{type(error).__name__}: {error}"[:400]}


def head(device: torch.device, size: Size) -> Numbers:
    """Each way of the head: errors on few rows, and time and memory of all; with Triton's kernels and without."""
    numbers: Numbers = {}
    kinds = {"trained, fp32 weights": (torch.float32, True), "trained, bf16 weights": (torch.bfloat16, True),
             "frozen, bf16 weights": (torch.bfloat16, False)}  # fmt: skip
    kernels = {"torch": False, **({"triton": True} if device.type == "cuda" else {})}
    before = fused.TRITON, logp.KEEP_ELSEWHERE
    try:
        for kernel, fused.TRITON in kernels.items():
            for mode, logp.KEEP_ELSEWHERE in {"kept": 2**33, "made again": 0}.items():
                for kind, (weight, trained) in kinds.items():
                    if trained or mode == "kept":
                        work = partial(one_head, device, size, weight, trained=trained)
                        numbers[f"{kind}, {mode}, {kernel}"] = guarded(work)
    finally:
        fused.TRITON, logp.KEEP_ELSEWHERE = before
    return numbers


def one_head(device: torch.device, size: Size, weight: torch.dtype, *, trained: bool) -> Numbers:
    off = head_off(device, rows=min(128, size.head[0]), width=size.head[1], vocab=min(20000, size.head[2]),
                   hidden=torch.bfloat16, weight=weight, trained=trained)  # fmt: skip
    rows, width, vocab = size.head
    h = torch.randn(rows, width, device=device).bfloat16().requires_grad_()
    W = (torch.randn(vocab, width, device=device) / 8).to(weight).requires_grad_(trained)
    target = torch.randint(vocab, (rows,), device=device)

    def work() -> None:
        h.grad = W.grad = None
        head_logp(h, LanguageHead(W), target).sum().backward()

    begin = forget(device)
    spent = milliseconds(work, device, 3)
    return {**off._asdict(), "ms": spent, "MiB": peak(device, begin),
            "TFLOP/s of the least": (6 if trained else 4) * rows * width * vocab / spent / 1e9}  # fmt: skip


def forget(device: torch.device) -> float:
    """Begin a new peak; MiB that are taken now."""
    if device.type != "cuda":
        return 0.0  # and `peak` gives nothing
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 2**20


def peak(device: torch.device, begin: float = 0.0) -> float | None:
    """MiB above `begin`; the allocator's highest since `forget`. None where it cannot be measured so."""
    return torch.cuda.max_memory_allocated(device) / 2**20 - begin if device.type == "cuda" else None


def flexible(device: torch.device, size: Size) -> Numbers:
    """FlexAttention compiled against itself as written, and how many programs four packs of other lengths take."""
    layer, numbers = LAYERS["softcap and window"], {}
    torch._dynamo.utils.counters.clear()
    for seed in range(4 if device.type == "cuda" else 1):
        lengths = {"prompt": (60, 300), "response": (5, 200)} if size.pairs > 5 else {}
        layout = Layout.of(collate(groups(size.pairs, seed=seed, **lengths), device, 64))
        q, k = (torch.randn(1, n, len(layout.end), layer.width, device=device) for n in (8, 2))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            began = time.perf_counter()
            ours = flex.in_flex(q, k, k, None, layout, layer.shape)
            wait(device)
            spent = time.perf_counter() - began
            here = Layout.of(collate(groups(size.pairs, seed=seed, **lengths), "cpu", 64))
            written = flex.in_flex(q.cpu(), k.cpu(), k.cpu(), None, here, layer.shape)
        programs = int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        numbers[f"pack {seed}"] = {"off": relative(ours, written), "seconds": spent, "programs": programs}
    return numbers


def families(device: torch.device, size: Size) -> Numbers:
    """Small models of each family: the start check, gradients against padded rows, and an update made twice."""
    kinds = [(family, compute) for family in FAMILIES for compute in (torch.float32, torch.bfloat16)]
    kinds = kinds if size is FULL else kinds[:2]
    return {f"{family} {compute}": guarded(partial(one_family, family, compute, device)) for family, compute in kinds}


def one_family(family: str, compute: torch.dtype, device: torch.device) -> Numbers:
    return family_off(family, compute, device)._asdict()

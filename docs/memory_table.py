"""The tables of memory on docs/scale.md: what well-known shapes take, by model/memory.py. docs/generate.py calls it."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import AutoConfig

from preftune.model.fits import WAYS, Demand, Fit, fit
from preftune.model.memory import expected
from preftune.model.shapes import Shapes, meta_module, shapes_of

GIB = 2**30
PACK = 4096  # tokens


def shape(
    family: str, width: int, mlp: int, layers: int, heads: int, key_heads: int, vocab: int, **others: object
) -> tuple[str, Mapping[str, object]]:
    """A family, and keys of its config."""
    return family, {
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": key_heads, "vocab_size": vocab, **others,
    }  # fmt: skip


KNOWN = {
    "Qwen2.5-0.5B": shape("qwen2", 896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True),
    "Qwen2.5-1.5B": shape("qwen2", 1536, 8960, 28, 12, 2, 151936, tie_word_embeddings=True),
    "Llama-3.2-3B": shape("llama", 3072, 8192, 28, 24, 8, 128256, tie_word_embeddings=True),
    "Qwen2.5-7B": shape("qwen2", 3584, 18944, 28, 28, 4, 152064, tie_word_embeddings=False),
    "Llama-3.1-8B": shape("llama", 4096, 14336, 32, 32, 8, 128256, tie_word_embeddings=False),
    "gemma-2-9b": shape("gemma2", 3584, 14336, 42, 16, 8, 256000, head_dim=256),
    "Qwen2.5-14B": shape("qwen2", 5120, 13824, 48, 40, 8, 152064, tie_word_embeddings=False),
    "Qwen2.5-32B": shape("qwen2", 5120, 27648, 64, 40, 8, 152064, tie_word_embeddings=False),
    "Qwen3-30B-A3B": shape("qwen3_moe", 2048, 6144, 48, 32, 4, 151936, head_dim=128, moe_intermediate_size=768,
                           num_experts=128, num_experts_per_tok=8, tie_word_embeddings=False),
    "Mixtral-8x7B": shape("mixtral", 4096, 14336, 32, 32, 8, 32000, num_local_experts=8, num_experts_per_tok=2,
                          tie_word_embeddings=False),
    "Llama-3-70B": shape("llama", 8192, 28672, 80, 64, 8, 128256, tie_word_embeddings=False),
}  # fmt: skip


def shapes(name: str) -> Shapes:
    """The shapes of a model of `KNOWN`."""
    family, keys = KNOWN[name]
    return shapes_of(meta_module(AutoConfig.for_model(family, **keys)))


def memory_of_one_gpu() -> list[str]:
    """A line for each model: GiB of one GPU that no other helps, in each way, and what of that is a pack."""
    names = [f"{way.name[0].upper()}{way.name[1:]}" for way in WAYS]
    lines = [f"| model | weights | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for name in KNOWN:
        counted = shapes(name)
        cells = [round(expected(counted, way.setup, PACK).total / GIB) for way in WAYS]
        lines.append(f"| {name} | {counted.parameters / 1e9:.1f} B | {' | '.join(map(str, cells))} |")
    return lines


def what_fits(gpus: int, gibibytes: float) -> list[str]:
    """A line for each model: how each way fits on so many GPUs of a size."""
    lines = [f"| model | {' | '.join(way.name for way in WAYS)} |", "|---|" + "---|" * len(WAYS)]
    for name in KNOWN:
        fits = [fit(shapes(name), way, gpus, Demand(gibibytes * GIB)) for way in WAYS]
        lines.append(f"| {name} | {' | '.join(map(cell, fits))} |")
    return lines


def cell(chosen: Fit) -> str:
    """Tokens of a pack and how it is divided, or what it would need."""
    if not chosen.tokens:
        return f"no: {chosen.bytes / GIB:.0f} GiB"
    marks = [f"{chosen.tokens:,}", *([chosen.setup.shard] if chosen.setup.shard != "none" else []),
             *(["recomputed"] if chosen.setup.checkpointing else [])]  # fmt: skip
    return ", ".join(marks)

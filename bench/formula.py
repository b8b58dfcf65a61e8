"""The formula of memory (model/memory.py) against measured peaks: what live tensors take in two packs and an update.

Every tensor that an operation returns is counted until it is freed, on a CPU as on a GPU, so that neither the machine's
other programs nor what an allocator holds back count. What a kernel takes for itself inside is not seen.
"""

from __future__ import annotations

import gc
import weakref
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import common
import numpy as np
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from preftune.model.load import DTYPES
from preftune.model.memory import Setup, expected
from preftune.model.policy import trainable, wrap
from preftune.model.shapes import shapes_of
from preftune.rows.row import Place
from preftune.tokens.groups import TokenGroup
from preftune.training.config import Optim
from preftune.training.optimizer import adamw

STORIES = Path("models/stories260K")
MADE = {  # shapes of models that are made here, with random weights
    "llama 10M": ("llama", {"vocab_size": 8192, "hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 6,
                            "num_attention_heads": 5, "num_key_value_heads": 5, "tie_word_embeddings": True}),
    "qwen3 10M, vocabulary 32k": ("qwen3", {
        "vocab_size": 32768, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": False}),
    "gemma2": ("gemma2", {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
                          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}),
    "mixtral, 8 experts, 2 active": ("mixtral", {
        "vocab_size": 4096, "hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3_moe, 16 experts, 4 active": ("qwen3_moe", {
        "vocab_size": 4096, "hidden_size": 192, "moe_intermediate_size": 128, "intermediate_size": 384,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 48, "num_experts": 16,
        "num_experts_per_tok": 4}),
}  # fmt: skip
FULL = Setup(device="cpu")
SETUPS = {
    "float32": FULL,
    "float32, recomputed": replace(FULL, checkpointing=True),
    "float32, products in bfloat16": replace(FULL, compute="bfloat16"),
    "bfloat16": replace(FULL, weights="bfloat16", compute="bfloat16"),
    "scored only": replace(FULL, trained=0),
}


class Live(TorchDispatchMode):
    """Bytes of the storages that live, and the most that ever did."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        return result

    def count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, storage._cdata, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def model(name: str, setup: Setup) -> PreTrainedModel:
    """The model of a name, with random weights."""
    if name == "stories260K":
        config = AutoConfig.from_pretrained(common.SHARED.parent / STORIES)
    else:
        family, keys = MADE[name]
        config = AutoConfig.for_model(family, **keys, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1,
                                      eos_token_id=2)  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(DTYPES[setup.weights]).eval()


def rows(tokens: int, vocab: int) -> Sequence[TokenGroup]:
    """Pairs of about so many distinct tokens, a fifth of them prompts."""
    rng = np.random.default_rng(0)
    return [
        TokenGroup(prompt=rng.integers(3, vocab, 52).astype(np.int32), kind="pair", id=str(i), ranks=(1, 2),
                   responses=tuple(rng.integers(3, vocab, 102).astype(np.int32) for _ in range(2)),
                   place=Place("made", i))
        for i in range(tokens // 256)
    ]  # fmt: skip


def measured(name: str, setup: Setup, tokens: int) -> tuple[int, int, PreTrainedModel]:
    """Peak bytes of the model's weights and all that two packs and an update add; the tokens of a pack; the model."""
    module = model(name, setup)
    policy = trainable(wrap(module, "auto", DTYPES[setup.compute])[0], checkpointing=setup.checkpointing)
    batch = policy.batch(rows(tokens, policy.vocab))
    gc.collect()
    with Live() as live:
        for parameter in module.parameters():
            live.count(parameter)
        if setup.trained == 0:
            with torch.no_grad():
                policy.read(batch)
        else:
            optimizer = adamw(policy.weights, Optim(), 0)
            for _ in range(2):
                for _ in range(2):
                    policy.read(batch).sum().backward()
                optimizer.step()
                module.zero_grad()
    return live.peak, batch.tokens, module


def case(name: str, kind: str, tokens: int) -> dict:
    """One cell."""
    setup = SETUPS[kind]
    peak, counted, module = measured(name, setup, tokens)
    shapes = shapes_of(module)
    told = expected(shapes, setup, counted)
    return {
        "model": name, "setup": kind, "parameters": shapes.parameters, "tokens": counted, "measured": peak,
        "predicted": told.total, "over": told.total / peak, "parts": asdict(told),
    }  # fmt: skip


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--model", choices=["stories260K", *MADE])


def main() -> None:
    args = common.options(__doc__ or "", add)
    torch.set_num_threads(1)
    names = [args.model] if args.model else ["stories260K"] if args.quick else ["stories260K", *MADE]
    cells = [case(name, kind, args.tokens) for name in names for kind in SETUPS]
    mib = 2**20
    print(common.table(
        ["model", "weights and products", "tokens of a pack", "measured MiB", "predicted MiB", "predicted / measured"],
        [[c["model"], c["setup"], c["tokens"], c["measured"] / mib, c["predicted"] / mib, c["over"]] for c in cells],
    ))  # fmt: skip
    common.save(f"formula{'-quick' if args.quick else ''}", cells,
                {"torch": torch.__version__, "transformers": transformers.__version__})  # fmt: skip


if __name__ == "__main__":
    main()

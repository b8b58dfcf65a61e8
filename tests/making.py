"""Models and rows that the tests make themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from preftune.rows.row import Place
from preftune.tokens.groups import TokenGroup

PLACE = Place("made", 1)
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN = {
    "gpt2": {
        "vocab_size": 64,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "falcon": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
}
MORE = {
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "lfm2": {"full_attn_idxs": [1]},
    "cohere": {"logit_scale": 2.0},
    **{name: {"sliding_window": 16} for name in ("mistral", "gemma2", "gemma3_text")},
    "cohere2": {"sliding_window": 16, "logit_scale": 2.0},
    **{
        name: {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        for name in ("qwen3_moe", "mixtral", "qwen3_next")
    },
    "gpt_oss": {"sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
}


def tiny(
    family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **keys: object
) -> PreTrainedModel:
    """A random model of a family. Its weights are large enough that wrong attention shows."""
    config = AutoConfig.for_model(family, **{**OWN.get(family, {**SMALL, **MORE.get(family, {})}), **keys})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    if dtype == torch.float64:
        norms_in_double(model)
    return model


def norms_in_double(model: PreTrainedModel) -> None:
    """transformers takes norms and rotary angles in fp32 even in a double model; the laws want all of it in double."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):

            def forward(x, module=module):
                return module.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon))

            module.forward = forward
        if type(module).__name__.endswith("RotaryEmbedding"):

            def rotary(x, position_ids, module=module):
                angles = position_ids[..., None].double() * module.inv_freq.double()
                both = torch.cat([angles, angles], -1)
                return both.cos(), both.sin()

            module.forward = rotary


def group(prompt: Sequence[int], *responses: Sequence[int], kind: str = "pair", **keys: object) -> TokenGroup:
    """A group of given token ids."""
    ranks = {"pair": (1, 2)}.get(kind, (1,))
    return TokenGroup(
        prompt=np.array(prompt, np.int32),
        responses=tuple(np.array(r, np.int32) for r in responses),
        kind=kind,
        place=PLACE,
        **{"ranks": ranks, **keys},
    )


def groups(
    count: int,
    *,
    seed: int = 0,
    vocab: int = 64,
    prompt: tuple[int, int] = (4, 30),
    response: tuple[int, int] = (1, 20),
    shared: int = 2,
    kind: str = "pair",
) -> list[TokenGroup]:
    """Random groups; all prompts begin with the same `shared` tokens. Bounds are inclusive lengths."""
    rng = np.random.default_rng(seed)
    start = np.arange(3, 3 + shared)
    made = []
    for _ in range(count):
        words = rng.integers(3, vocab, rng.integers(prompt[0], prompt[1] + 1))
        sides = [
            rng.integers(3, vocab, rng.integers(response[0], response[1] + 1))
            for _ in range(2 if kind == "pair" else 1)
        ]
        made.append(group(np.concatenate([start, words]), *sides, kind=kind))
    return made


def save_model(path: Path, seed: int = 0) -> Path:
    """A tiny random Llama with a tokenizer of numbered words, as a plain folder."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 64)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(path)
    tiny(seed=seed).save_pretrained(path)
    return path


def save_pairs(path: Path, count: int, seed: int = 0) -> Path:
    """Rows whose chosen response has more low-numbered words, which a model can learn."""
    rng = np.random.default_rng(seed)
    say = lambda low, high, n: " ".join(f"w{i}" for i in rng.integers(low, high, n))  # noqa: E731
    rows = [
        {
            "id": f"r{i}",
            "prompt": say(3, 64, rng.integers(3, 9)),
            "chosen": " " + say(3, 30, rng.integers(2, 7)),
            "rejected": " " + say(30, 64, rng.integers(2, 7)),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

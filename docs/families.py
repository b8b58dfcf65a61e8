"""Write docs/models.md: what preftune does with each causal family of transformers that can be built small.

    python docs/families.py [family ...]    all families (some minutes), or the rows of some on the terminal

Each is built with random weights from a small config, and tried on a pack that mixes lengths across every limit of
length that it has. tests/model/test_families.py does some of them.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from preftune.errors import UserError, third_party_message
from preftune.model.policy import wrap
from preftune.model.verify import verify_layout
from preftune.rows.row import Place
from preftune.tokens.groups import TokenGroup

WORDS = 64
TWO_LAYERS = ["hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "decoder_num_hidden_layers"]
SMALL = {  # numbers that configs share, whatever else they have
    **dict.fromkeys(["num_hidden_layers", *TWO_LAYERS], 2),
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "embed_dim", "word_embed_proj_dim", "lru_width"], 32),
    **dict.fromkeys(
        ["intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "d_ff", "intermediate_size_mlp"], 48
    ),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_k", "moe_topk", "first_k_dense_replace", "num_key_value_heads"], 2),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "kv_lora_rank", "q_lora_rank"], 16),
    **dict.fromkeys(["head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "linear_key_head_dim"], 8),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len", "seq_length"], 256),
    **dict.fromkeys(["n_group", "topk_group", "n_shared_experts"], 1),
    "vocab_size": WORDS,
    "vocab_size_per_layer_input": WORDS,
    "sliding_window": 16,
    "attention_chunk_size": 64,
    "hidden_size_per_layer_input": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "qk_head_dim": 16,
    **dict.fromkeys(["mamba_d_head", "mamba_d_state", "mamba_chunk_size", "chunk_size", "state_size"], 8),
    **dict.fromkeys(["time_step_rank", "mamba_dt_rank", "ssm_state_size", "mamba_head_dim"], 8),
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_num_heads": 4,
    "mamba_n_groups": 1,
    "n_groups": 1,
    "rotary_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LARGEST = 5e6  # parameters of a model that counts as small


class Row(NamedTuple):
    """outcome: "trie", "padded", "refused" or "not built"; reason: why it is not "trie"; off: nats a token off plain
    passes at the worst token."""

    family: str
    outcome: str
    reason: str
    off: float | None = None


def families() -> Iterator[str]:
    """The model types that transformers has a causal language model for."""
    yield from sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(family: str) -> PreTrainedConfig:
    """The config of a family with every number of SMALL that it has a key for."""
    kind = type(AutoConfig.for_model(family))
    known = set(inspect.signature(kind.__init__).parameters) | set(vars(kind())) | {"vocab_size"}
    keys = {key: value for key, value in SMALL.items() if key in known}
    layers = getattr(kind(), "layer_types", None)
    mapped = type(kind()).attribute_map.get("layer_types", "layer_types")
    if layers and not isinstance(getattr(kind, mapped, None), property):
        distinct = list(dict.fromkeys(layers))
        keys |= {"layer_types": distinct, "num_hidden_layers": len(distinct)}
    if "kv_lora_rank" in keys:
        keys["num_key_value_heads"] = keys["num_attention_heads"]
    return AutoConfig.for_model(family, **keys)


def build(family: str) -> PreTrainedModel:
    """A random model whose weights are large enough that wrong attention shows."""
    config = small_config(family)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters with the keys that configs share")
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.7 / parameter.shape[-1] ** 0.5)
        module(input_ids=torch.ones(1, 40, dtype=torch.long), use_cache=False)
    return module


def rows(limits: tuple[int, ...]) -> list[TokenGroup]:
    """Pairs of mixed lengths, of which some stand on both sides of each limit."""
    draw = np.random.default_rng(0)
    lengths = [(6, 3, 9), (11, 8, 2), (30, 6, 12), *((n - 6, 5, 6) for n in limits), *((n - 6, 6, 9) for n in limits)]
    made = []
    for line, (prompt, *responses) in enumerate(lengths, 1):
        ids = [np.concatenate([[3, 4], draw.integers(3, WORDS, prompt - 2)]),
               *(draw.integers(3, WORDS, n) for n in responses)]  # fmt: skip
        first, *rest = (x.astype(np.int32) for x in ids)
        made.append(
            TokenGroup(prompt=first, responses=tuple(rest), kind="pair", place=Place("rows", line), ranks=(1, 2))
        )
    return made


def attempt(family: str) -> Row:
    """What becomes of a family."""
    try:
        module = build(family)
    except Exception as error:  # configs fail in many ways where their numbers do not suit one another
        return Row(family, "not built", third_party_message(error))
    try:
        policy, reason = wrap(module, "auto")
        verified, off = verify_layout(policy, policy.batch(rows(policy.limits)))
    except UserError as error:
        return Row(family, "refused", error.problems[0].message)
    if verified.layout != policy.layout:
        reason = off.reason or f"sharing prefixes changes what it says by {off.worst:.1e} nats a token"
        return Row(family, verified.layout, reason)
    reason = "" if verified.layout == "trie" else reason.partition(": ")[2]
    return Row(family, verified.layout, reason, off.worst)


def table(found: list[Row]) -> str:
    count = {outcome: sum(row.outcome == outcome for row in found) for outcome in ("trie", "padded", "refused")}
    lines = [
        "# Models",
        "",
        f"Every causal family of transformers that can be built small, tried by `docs/families.py` on packs that mix "
        f"lengths across each limit that the model has: {count['trie']} share prefixes (trie), {count['padded']} take "
        f"one padded row a response, {count['refused']} are refused. Numbers are nats a token off the family's own "
        "plain forward passes, in fp32, at the worst token.",
        "",
        "| family | layout | off | why |",
        "|---|---|---|---|",
    ]
    for row in found:
        if row.outcome != "not built":
            off = "" if row.off is None else f"{row.off:.0e}"
            lines.append(f"| {row.family} | {row.outcome} | {off} | {row.reason} |")
    missing = [row.family for row in found if row.outcome == "not built"]
    lines += ["", f"Not built small, and so not tried: {', '.join(missing)}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tried = []
    for name in sys.argv[1:] or families():
        tried.append(attempt(name))
        print(*tried[-1], sep="  ", flush=True)
    if not sys.argv[1:]:
        Path(__file__).with_name("models.md").write_text(table(tried))

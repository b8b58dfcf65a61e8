"""What a model is asked about itself: its classes of length, and what its family does to logits."""

from __future__ import annotations

import copy

import pytest
import torch
from making import group, groups, tiny

from preftune.errors import UserError
from preftune.model.policy import recompute_activations, wrap
from preftune.model.probe import decoder, probe, try_longest
from preftune.model.verify import plain_logp, verify_layout
from preftune.pack.batch import collate

LIMIT = 24


def longrope(limit: int = LIMIT) -> dict[str, object]:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0, 6.0, 8.0, 10.0], "factor": 8.0}
    return {"rope_type": "longrope", "rope_theta": 1e4, **factors, "original_max_position_embeddings": limit}


ROPES = {
    "none": ({}, ()),
    "longrope": ({"rope_parameters": longrope(), "original_max_position_embeddings": LIMIT}, (LIMIT,)),
    "llama3": (
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": LIMIT}}, ()),
    "yarn": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                  "original_max_position_embeddings": LIMIT}}, ()),
    "dynamic": ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}, ()),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "kind"), [*((family, kind) for family in ("llama", "qwen2") for kind in ROPES), ("phi3", "longrope")]
)
def test_classes_of_length_are_found_whatever_the_family(family: str, kind: str) -> None:
    keys, limits = ROPES[kind]
    assert probe(tiny(family, **copy.deepcopy(keys))).limits == limits


@pytest.mark.filterwarnings("ignore")
def test_a_rotation_for_each_type_of_layer_may_have_classes() -> None:
    kinds = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": longrope(40)}
    layers = ["sliding_attention", "full_attention", "full_attention"]
    assert probe(tiny("gemma3_text", rope_parameters=kinds, layer_types=layers)).limits == (40,)


def across(limit: int) -> list:
    """Rows on both sides of a limit and next to it, in pairs that cross it and in pairs that do not."""
    lengths = [(limit - 12, 4, 5), (limit - 8, 7, 8), (limit - 8, 8, 9), (limit - 8, 9, 30), (limit + 5, 3, 4)]
    rows = torch.Generator().manual_seed(3)
    draw = lambda n: torch.randint(3, 64, (n,), generator=rows).tolist()  # noqa: E731
    return [group([3, 4, *draw(prompt - 2)], draw(chosen), draw(rejected)) for prompt, chosen, rejected in lengths]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["auto", "padded"])
@pytest.mark.parametrize("family", ["phi3", "llama", "qwen2"])
def test_a_pack_across_a_limit_is_the_sum_of_its_rows(family: str, layout: str) -> None:
    """The log-probabilities are those of plain passes, and the gradient is that of one pack a row."""
    policy, _ = wrap(tiny(family, **copy.deepcopy(ROPES["longrope"][0])), layout)
    rows, gradients = across(LIMIT), []
    batch = policy.batch(rows)
    assert len(batch.parts) == 2
    assert float((policy.token_logp(batch) - plain_logp(policy, batch)).abs().max()) < 1e-4
    verified, off = verify_layout(policy, batch)
    assert (verified.layout, off.worst < 1e-4) == (policy.layout, True)
    for packs in ([rows], [[row] for row in rows]):
        policy.module.zero_grad()
        for pack in packs:
            policy.token_logp(policy.batch(pack)).sum().backward()
        gradients.append([p.grad.clone() for p in policy.module.parameters() if p.grad is not None])
    for together, alone in zip(*gradients, strict=True):
        assert torch.allclose(together, alone, atol=1e-4 * max(1.0, float(alone.abs().max())))


@pytest.mark.filterwarnings("ignore")
def test_half_precision_fills_each_pass_of_a_pack() -> None:
    policy, _ = wrap(tiny("phi3", **copy.deepcopy(ROPES["longrope"][0])), "auto", torch.bfloat16)
    batch = policy.batch(across(LIMIT))
    assert all(len(part.ids) % 128 == 0 for part in batch.parts)
    assert float((policy.token_logp(batch) - plain_logp(policy, batch)).abs().max()) < 0.3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "keys", "scale", "softcap"),
    [
        ("llama", {}, 1.0, None),
        ("cohere", {"logit_scale": 0.07}, 0.07, None),
        ("granite", {"logits_scaling": 13.0}, 1 / 13, None),
        ("gemma2", {"final_logit_softcapping": 30.0}, 1.0, 30.0),
        ("recurrent_gemma", {"logits_soft_cap": 7.0}, 1.0, 7.0),
        ("nanochat", {"final_logit_softcapping": 15.0}, 1.0, 15.0),
        ("gpt2", {}, 1.0, None),
    ],
)
def test_scale_and_cap_are_those_that_the_family_applies(
    family: str, keys: dict, scale: float, softcap: float | None, dtype: torch.dtype
) -> None:
    """To the last digit, also where the weights are too coarse to show it."""
    module = tiny(family, dtype=dtype, **keys)
    behavior = probe(module)
    assert behavior.scale == pytest.approx(scale, rel=1e-7)
    assert behavior.softcap == softcap
    assert "forward" not in vars(module.get_output_embeddings())
    assert behavior == probe(module)


@pytest.mark.filterwarnings("ignore")
def test_the_decoder_is_found_where_its_class_does_not_name_it() -> None:
    chunks = {"num_local_experts": 2, "intermediate_size_mlp": 48, "no_rope_layers": [1, 0, 1]}
    module = tiny("llama4_text", attention_chunk_size=64, **chunks)
    assert module.base_model is module
    assert decoder(module) is module.model
    batch = collate(groups(3, seed=1))
    assert verify_layout(wrap(module, "auto")[0], batch)[1].worst < 1e-4


DRAWS = {  # what a family draws at random in training
    "mixtral": {"router_jitter_noise": 0.3},
    "falcon": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "phi": {"resid_pdrop": 0.3, "attention_dropout": 0.3},
    "opt": {"dropout": 0.3, "layerdrop": 0.3},
    "gpt_neox": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", DRAWS)
def test_nothing_is_drawn_when_activations_are_computed_again(family: str) -> None:
    """Whatever its config calls it; and the gradient is that without recomputation."""
    made, ways = groups(3, seed=11), []
    for again in (False, True):
        policy, _ = wrap(tiny(family, **DRAWS[family]), "auto")
        if again:
            recompute_activations(policy.module)
        assert not any(part.training for part in policy.module.modules())
        logp = policy.token_logp(policy.batch(made))
        logp.sum().backward()
        ways.append([logp.detach(), *(p.grad for p in policy.module.parameters() if p.grad is not None)])
    assert torch.equal(ways[0][0], ways[1][0])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*ways, strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["mpt", "gpt2", "opt"])
def test_a_row_beyond_the_positions_of_a_model_is_refused_by_name(family: str) -> None:
    """Without weights, as `check` tries it, and with them."""
    keys = {
        "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 32},
        "gpt2": {"n_positions": 32},
        "opt": {"max_position_embeddings": 32},
    }
    module = tiny(family, **keys[family])
    long = [*groups(2, seed=1, prompt=(4, 9), response=(2, 4)), group(range(3, 40), [5, 6], [7])]
    with pytest.raises(UserError, match="rows of up to"):
        verify_layout(wrap(module, "auto")[0], collate(long))
    if family == "mpt":  # the others look positions up in a table, of which torch's meta device knows no end
        with pytest.raises(UserError, match="rows of up to 39 tokens"):
            try_longest(module.to("meta"), long)
        try_longest(module, long[:2])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "minicpm3"])
def test_values_narrower_than_keys_share_prefixes(family: str) -> None:
    ranks = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12}
    experts = {"n_routed_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
               "n_group": 1, "topk_group": 1, "num_key_value_heads": 4}  # fmt: skip
    module = tiny(family, **ranks, **experts, head_dim=8)
    policy, off = verify_layout(wrap(module, "auto")[0], collate(groups(4, seed=1)))
    assert (policy.layout, off.reason) == ("trie", "")
    assert off.mean < 1e-4

"""What the check before training lets pass and what it does not, in every type."""

from __future__ import annotations

import itertools

import pytest
import torch
from making import groups, tiny

from preftune.errors import UserError
from preftune.model import attention
from preftune.model.layout import Layout
from preftune.model.policy import NOISE, Policy, wrap
from preftune.model.verify import GROUPS, HALF, disagreement, plain_logp, rounding_sensitivity, sample, verify_layout
from preftune.pack.batch import Batch, collate


def policy_of(family: str, kind: str, gain: float = 1.0) -> tuple[Policy, Batch]:
    """A random model in fp32, with products in bf16, or all in bf16; the gains of its norms times so much."""
    module = tiny(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 2})
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.mul_(gain).add_(gain if family.startswith("gemma") and gain != 1 else 0)
    module = module.bfloat16() if kind == "weights" else module
    policy, _ = wrap(module, "auto", torch.float32 if kind == "float32" else torch.bfloat16)
    return policy, collate(groups(3, seed=1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gain", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["float32", "products", "weights"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "mixtral", "qwen3_moe", "gpt_oss", "gpt2", "lfm2"])
def test_rounding_alone_refuses_no_model(family: str, kind: str, gain: float) -> None:
    """Not where a rounding sends a token to another expert, nor where large gains make much of it."""
    policy, batch = policy_of(family, kind, gain)
    verified, off = verify_layout(policy, batch)
    assert verified.layout == policy.layout
    assert off.worst <= verified.noise
    if kind == "float32":
        assert verified.noise == NOISE
    else:
        assert verified.noise >= HALF


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["float32", "products", "weights"])
@pytest.mark.parametrize("family", ["llama", "gemma", "mixtral", "gpt2"])
def test_wrong_attention_is_caught_and_replaced(family: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.InBlocks.apply
    monkeypatch.setattr(attention.InBlocks, "apply", lambda q, k, v, *rest: right(q, k, v.flip(2), *rest))
    policy, batch = policy_of(family, kind)
    verified, off = verify_layout(policy, batch)
    assert verified.layout == "padded"
    assert off.worst > 0.1


FAULTS = {  # nats a token that they are off in fp32
    "a hidden state times 1.1": lambda right, self, batch: right(self, batch) * 1.1,
    "logits times 1.02": lambda right, self, batch: right(self, batch) * 1.02,
    "the row before for the last": lambda right, self, batch: right(self, batch).roll(batch.tokens - 1, 0),
}


@pytest.mark.parametrize(
    ("fault", "kind"), [*itertools.product(FAULTS, ["float32", "products"]), (next(iter(FAULTS)), "weights")]
)
def test_a_wrong_part_is_refused(fault: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both layouts; where the weights are in fp32, half precision hides nothing, and else no forgotten factor."""
    policy, batch = policy_of("llama", kind)
    right = Policy.hidden
    monkeypatch.setattr(Policy, "hidden", lambda self, pack: FAULTS[fault](right, self, pack))
    with pytest.raises(UserError, match="nats a token off its own forward pass") as refused:
        verify_layout(policy, batch)
    assert ("float32" in str(refused.value)) == (kind != "float32")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3_moe"])
def test_few_tokens_refuse_no_model(family: str) -> None:
    policy, _ = policy_of(family, "weights")
    for seed in range(12):
        pairs = groups(1, seed=seed, prompt=(4, 12), response=(1, 2))
        verified, _ = verify_layout(policy, collate(pairs, multiple=policy.multiple))
        assert verified.layout == "trie", seed


@pytest.mark.parametrize("kind", ["float32", "weights"])
def test_a_model_that_draws_at_random_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, batch = policy_of("llama", kind)
    part = policy.module.base_model.layers[1].mlp
    part.register_forward_hook(lambda _part, _inputs, out: torch.nn.functional.dropout(out, 0.02))
    with pytest.raises(UserError, match="draws at random"):
        verify_layout(policy, batch)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_fails_on_the_trie_is_padded_unless_the_trie_was_asked_for() -> None:
    policy, batch = policy_of("nemotron", "float32")
    assert policy.layout == "trie"
    with pytest.raises(UserError, match="auto"):
        verify_layout(policy, batch, fall_back=False)
    verified, off = verify_layout(policy, batch)
    assert (verified.layout, off.worst) == ("padded", float("inf"))


def test_the_sample_is_short_rows_one_beyond_the_window_and_the_longest() -> None:
    policy, _ = wrap(tiny("mistral", sliding_window=40), "auto")
    made = [*groups(30, seed=3, prompt=(4, 9), response=(3, 6)), *groups(3, seed=4, prompt=(60, 70), response=(3, 6))]
    batch = sample(made, policy)
    assert len(batch.groups) == GROUPS + 2
    assert max(made, key=lambda g: len(g.prompt) + max(map(len, g.responses))) in batch.groups
    assert Layout.of(batch).depth > 40
    assert max(g.tokens for g in batch.groups[:GROUPS]) < 40
    assert len(sample(groups(30, response=(90, 99)), wrap(tiny(), "auto")[0]).groups) == 3


@pytest.mark.parametrize("kind", ["float32", "products", "weights"])
def test_one_wrong_token_among_many_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its share of a mean is small: the worst token is bounded too."""
    policy, _ = policy_of("llama", kind)
    batch = collate(groups(8, seed=1, response=(20, 40)), multiple=policy.multiple)
    right = Policy.token_logp

    def wrong(self: Policy, pack: Batch) -> torch.Tensor:
        logp = right(self, pack)
        logp[-1] += 1e-2 if kind == "float32" else 1.0
        return logp

    monkeypatch.setattr(Policy, "token_logp", wrong)
    with pytest.raises(UserError, match="up to"):
        verify_layout(policy, batch)


@pytest.mark.filterwarnings("ignore")
def test_a_cap_of_logits_counts_whatever_its_config_calls_it() -> None:
    for family, name in (("recurrent_gemma", "logits_soft_cap"), ("gemma2", "final_logit_softcapping")):
        policy, _ = wrap(tiny(family, **{name: 2.0}), "auto")
        verified, off = verify_layout(policy, collate(groups(3, seed=1)))
        assert verified.head.softcap == 2
        assert off.worst < 5e-5


def test_a_layout_that_never_arrives_is_infinitely_wrong() -> None:
    policy, batch = policy_of("llama", "float32")
    plain = plain_logp(policy, batch)
    assert disagreement(policy, batch, plain).worst < 1e-5
    policy.module.set_attn_implementation("eager")
    assert disagreement(policy, batch, plain).mean == float("inf")


def test_what_rounding_moves_follows_the_type_and_leaves_the_model_as_it_was() -> None:
    moves = {}
    for kind in ("float32", "products", "weights"):
        policy, batch = policy_of("llama", kind)
        plain, drawn = plain_logp(policy, batch), torch.random.get_rng_state()
        moves[kind] = rounding_sensitivity(policy, batch, plain, seeds=2).mean
        assert torch.equal(plain_logp(policy, batch), plain)
        assert torch.equal(torch.random.get_rng_state(), drawn)
    assert 0 < moves["float32"] < 1e-5
    assert 1e-3 < moves["products"] < 0.1
    assert 1e-3 < moves["weights"] < 0.1

"""What is prepared on a model comes off and goes on again, to the bit."""

from __future__ import annotations

import pytest
import torch
from making import group, tiny

from preftune.model.as_made import as_made, given_back
from preftune.model.policy import recompute_activations, trainable, wrap
from preftune.pack.batch import collate


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_prepared_model_is_as_made_and_then_prepared_as_before(family: str) -> None:
    made, model = tiny(family), tiny(family)
    ids = torch.arange(3, 12)[None]
    policy = trainable(wrap(model, "trie")[0], checkpointing=False)
    recompute_activations(model)
    batch = collate([group(range(3, 9), [7, 8, 2], [9, 4])])
    before = policy.token_logp(batch)
    with as_made(model, "eager"), torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, made(input_ids=ids).logits)
        assert not [part for part in model.modules() if "forward" in vars(part) or part._forward_pre_hooks]
    after = policy.token_logp(batch)
    assert torch.equal(before, after)
    after.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_model_that_was_lent_can_generate_again() -> None:
    model = tiny()
    model.set_attn_implementation("sdpa")
    ids = torch.arange(3, 9)[None]
    before = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    with given_back(model):
        wrap(model, "trie")
        with pytest.raises(ValueError, match="trie"):
            model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), before)
    assert model.config._attn_implementation == "sdpa"

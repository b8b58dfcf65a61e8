"""A scalar head gives one number a response, read off its last token, with the gradient of a plain forward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from making import group, groups, tiny

from preftune.model.heads import ScalarHead
from preftune.model.policy import Policy, trainable, wrap
from preftune.pack.trie import distinct_tokens

MADE = [*groups(4, seed=5, shared=3), group([3, 4, 5], [6, 7, 8, 9], [6, 7])]  # one response begins as another
MADE += MADE[:1]


def scores_and_gradients(scores: torch.Tensor, policy: Policy) -> list[torch.Tensor]:
    policy.module.zero_grad()
    policy.head.weight.grad = None
    (scores * torch.linspace(-1, 2, len(scores), dtype=scores.dtype)).sum().backward()
    parameters = [policy.head.weight, *policy.module.base_model.parameters()]
    return [scores.detach(), *(p.grad.clone() for p in parameters)]


@pytest.mark.parametrize("layout", ["auto", "padded"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_score_is_that_of_a_plain_forward_pass(family: str, layout: str, checkpointing: bool) -> None:
    torch.manual_seed(0)
    head = ScalarHead(torch.randn(1, 32, requires_grad=True))
    plain = replace(wrap(tiny(family), "padded")[0], head=head)
    policy = trainable(replace(wrap(tiny(family), layout)[0], head=head), checkpointing=checkpointing)
    sequences = [torch.tensor([*g.prompt, *r])[None] for g in MADE for r in g.responses]
    ends = [plain.module.base_model(input_ids=ids).last_hidden_state[0, -1] for ids in sequences]
    expected = scores_and_gradients((torch.stack(ends) @ head.weight.T)[:, 0], plain)
    batch = policy.batch(MADE)
    assert batch.tokens == distinct_tokens([ids[0].numpy() for ids in sequences])
    assert batch.ids[batch.source][batch.member].tolist() == [int(ids[0, -1]) for ids in sequences]
    assert len(batch.source) == len(sequences) - 2  # the repeated row is read once
    ours = scores_and_gradients(policy.read(batch), policy)
    for a, b in zip(ours, expected, strict=True):
        assert torch.allclose(a, b, atol=2e-5 * max(1.0, float(b.abs().max())))


def test_fill_reaches_no_score() -> None:
    policy = replace(wrap(tiny(), "auto", torch.bfloat16)[0], head=ScalarHead(torch.ones(1, 32)))
    batch = policy.batch(MADE)
    assert len(batch.ids) % 128 == len(batch.read) % 128 == 0
    assert policy.read(batch).shape == (12,) == (batch.responses,)
    bare = replace(policy, compute=torch.float32)
    assert torch.allclose(bare.read(batch), bare.read(bare.batch(MADE)), atol=1e-4)

"""What the sampler says of the tokens that it draws is what the trie and a plain forward pass say of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making import group, tiny

from preftune.model.policy import Policy, wrap
from preftune.model.verify import plain_logp
from preftune.rollout.draw import Drawn
from preftune.rollout.embedded import Embedded

HOOKED = ["llama", "qwen2", "qwen3", "mistral", "mixtral", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi", "phi3",
          "olmo2", "smollm3", "granite", "starcoder2", "glm4", "cohere", "cohere2", "gpt2", "gpt_neox", "opt",
          "gpt_oss"]  # fmt: skip
CACHED = ["falcon", "bloom", "stablelm", "lfm2", "qwen3_next", "mamba"]
ENDS = frozenset({2, 5, 9})


def prompts(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 64, length).astype(np.int32) for length in lengths]


def small(family: str):
    """A tiny model; a hybrid needs a fourth layer, and roundings grow in Mamba's state where weights are large."""
    model = tiny(family, **({"num_hidden_layers": 4} if family == "qwen3_next" else {}))
    if family == "mamba":
        with torch.no_grad():
            for weight in model.parameters():
                weight.div_(8 if weight.dim() > 1 else 1)
    return model


def batch_of(policy: Policy, asked: list[np.ndarray], drawn: list[Drawn]):
    """The drawn responses as a pack of the trie, in order."""
    return policy.batch([group(p, *d.ids, kind="ranking") for p, d in zip(asked, drawn, strict=True)])


def logp_of(drawn: list[Drawn]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([logp for d in drawn for logp in d.logp]))


@pytest.mark.filterwarnings("ignore")  # transformers warns about missing kernels of some families
@pytest.mark.parametrize("family", HOOKED + CACHED)
def test_what_is_said_is_what_the_trie_and_teacher_forcing_say(family: str) -> None:
    policy, _ = wrap(small(family), "auto")
    asked = prompts(5, 9, 9, 37)
    drawn = Embedded(policy, 24, ENDS).draw(asked, 6, (1,))
    assert {len(ids) for d in drawn for ids in d.ids} - {24}  # some end early
    for d in drawn:
        for ids, ended in zip(d.ids, d.ended, strict=True):
            assert ended == (int(ids[-1]) in ENDS)
            assert ended or len(ids) == 24
            assert not set(ids[:-1].tolist()) & ENDS
    batch, logp = batch_of(policy, asked, drawn), logp_of(drawn)
    with torch.no_grad():
        assert float((policy.token_logp(batch) - logp).abs().max()) < 5e-5
    assert float((plain_logp(policy, batch) - logp).abs().max()) < 5e-5

"""What the sampler says of the tokens that it draws is what the trie and a plain forward pass say of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making import group, tiny

from preftune import events
from preftune.errors import UserError
from preftune.model.as_made import as_made
from preftune.model.policy import Policy, wrap
from preftune.model.verify import plain_logp
from preftune.rollout import branches, decode
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
    model = tiny(family, num_hidden_layers=4) if family == "qwen3_next" else tiny(family)
    if family == "mamba":
        with torch.no_grad():
            for weight in model.parameters():
                weight.div_(8 if weight.dim() > 1 else 1)
    return model


def batch_of(policy: Policy, asked: list[np.ndarray], drawn: list[Drawn]):
    """The drawn responses as a pack of the trie, in order."""
    return policy.batch(
        [group(p.tolist(), *(ids.tolist() for ids in d.ids), kind="ranking") for p, d in zip(asked, drawn, strict=True)]
    )


def logp_of(drawn: list[Drawn]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([logp for d in drawn for logp in d.logp]))


@pytest.mark.filterwarnings("ignore")  # transformers warns about missing kernels of some families
@pytest.mark.parametrize("family", HOOKED + CACHED)
def test_what_is_said_is_what_the_trie_and_teacher_forcing_say(family: str) -> None:
    policy, _ = wrap(small(family), "auto")
    asked = prompts(5, 9, 9, 37)
    notes: list[events.Event] = []
    with events.listening(notes.append):
        drawn = Embedded(policy, 24, ENDS).draw(asked, 6, (1,))
    assert not notes  # its own cache is right, so that it is drawn from with it
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_family_that_keeps_states_outside_of_its_cache_is_drawn_without_one(temperature: float) -> None:
    """recurrent_gemma keeps them in its modules, where no cache of transformers reorders them."""
    policy, _ = wrap(tiny("recurrent_gemma"), "auto")
    asked = prompts(5, 9, 9, 37)
    notes: list[events.Event] = []
    with events.listening(notes.append):
        drawn = Embedded(policy, 12, ENDS, temperature).draw(asked, 6, (1,))
    assert len(notes) == 1
    assert "recurrent_gemma keeps what it has read outside of its cache" in str(notes[0])
    for ids, each in zip(asked, drawn, strict=True):
        for response, said in zip(each.ids, each.logp, strict=True):
            whole = [plain_logits(policy, np.append(ids, response[:t])) for t in range(len(response))]
            logp = torch.log_softmax(torch.stack(whole) / temperature, -1)
            plain = logp.gather(1, torch.from_numpy(response.astype(np.int64))[:, None])[:, 0]
            assert float((plain - torch.from_numpy(said)).abs().max()) < 5e-5


def same(drawn: list[Drawn], others: list[Drawn]) -> bool:
    """Whether all ids and log-probabilities are the same bits."""
    pairs = [pair for a, b in zip(drawn, others, strict=True)
             for pair in zip((*a.ids, *a.logp), (*b.ids, *b.logp), strict=True)]  # fmt: skip
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_response_has_the_same_bits_whatever_else_is_drawn(family: str) -> None:
    """On a CPU in fp32: alone or among others, in any order, few or many responses."""
    policy, _ = wrap(tiny(family), "auto")
    asked, sampler = prompts(5, 9, 9, 37, 31, 32, 33, 70, 12), Embedded(policy, 24, ENDS)
    drawn = sampler.draw(asked, 6, (1,))
    assert same(drawn, sampler.draw(asked[::-1], 6, (1,))[::-1])
    assert same(drawn, [one for ids in asked for one in sampler.draw([ids], 6, (1,))])
    assert same([Drawn(d.ids[:2], d.logp[:2], d.ended[:2]) for d in drawn], sampler.draw(asked, 2, (1,)))
    other = sampler.draw(asked, 6, (2,))
    assert not any(np.array_equal(a, b) for d, e in zip(drawn, other, strict=True)
                   for a, b in zip(d.logp, e.logp, strict=True))  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_are_the_distributions(temperature: float) -> None:
    """Chi-square of 20,000 first tokens and of the second tokens behind the commonest first one."""
    model = tiny(vocab_size=12)
    with torch.no_grad():
        model.get_input_embeddings().weight.div_(8)  # pyright: ignore[reportCallIssue]
    policy, (prompt,) = wrap(model, "auto")[0], [np.array([3, 4, 5], np.int32)]
    (drawn,) = Embedded(policy, 2, frozenset(), temperature).draw([prompt], 20_000, (3,))
    tokens = np.stack(drawn.ids)
    common = int(np.bincount(tokens[:, 0]).argmax())
    for ids, seen in ((prompt, tokens[:, 0]), (np.append(prompt, common), tokens[tokens[:, 0] == common, 1])):
        expected = torch.softmax(plain_logits(policy, ids).double() / temperature, 0).numpy() * len(seen)
        chi_square = float(((np.bincount(seen, minlength=12) - expected) ** 2 / expected).sum())
        assert expected.min() > 5
        assert chi_square < 31.3  # 11 degrees of freedom, one in a thousand
    logp = torch.log_softmax(plain_logits(policy, prompt).double() / temperature, 0)
    first = np.array([numbers[0] for numbers in drawn.logp])
    assert float((logp[torch.from_numpy(tokens[:, 0].astype(np.int64))] - torch.from_numpy(first)).abs().max()) < 1e-5


def plain_logits(policy: Policy, ids: np.ndarray) -> torch.Tensor:
    """(vocab,): of the token after these, by the model as it was made."""
    with as_made(policy.module, "eager"), torch.no_grad():
        return policy.module(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0, -1]


def test_drawing_leaves_the_model_as_it_was_and_greedy_takes_the_likeliest() -> None:
    policy, _ = wrap(tiny(), "auto")
    asked = prompts(5, 9)
    batch, digest = policy.batch([group(ids.tolist(), [7, 8, 2]) for ids in asked]), policy.weights.digest()
    before = policy.token_logp(batch)
    drawn = Embedded(policy, 6, frozenset(), greedy=True).draw(asked, 2, (1,))
    for ids, each in zip(asked, drawn, strict=True):
        assert np.array_equal(each.ids[0], each.ids[1])
        for t, token in enumerate(each.ids[0]):
            assert int(plain_logits(policy, np.append(ids, each.ids[0][:t])).argmax()) == int(token)
    after = policy.token_logp(batch)
    assert torch.equal(before, after)
    assert policy.weights.digest() == digest
    after.sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in policy.module.parameters())


def test_a_vocabulary_is_drawn_from_in_parts_and_half_precision_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = wrap(tiny(), "auto")
    asked = prompts(5, 9, 40)
    whole = Embedded(policy, 12, ENDS).draw(asked, 8, (1,))
    monkeypatch.setitem(decode.LOGITS, "cpu", 1)
    assert same(whole, Embedded(policy, 12, ENDS).draw(asked, 8, (1,)))
    half, _ = wrap(tiny(), "auto", torch.bfloat16)
    drawn = Embedded(half, 12, ENDS).draw(asked, 8, (1,))
    with torch.no_grad():
        assert float((half.token_logp(batch_of(half, asked, drawn)) - logp_of(drawn)).abs().mean()) < 0.05


def test_a_draw_that_lasts_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = wrap(tiny(), "auto")
    heard: list[events.Event] = []
    with events.listening(heard.append):
        Embedded(policy, 4, frozenset()).draw(prompts(5), 2, (1,))
        assert not heard, "a short one says nothing"
        monkeypatch.setattr(decode, "SLOW", -1.0)
        Embedded(policy, 4, frozenset()).draw(prompts(5), 2, (1,))
    assert heard == [events.Progress("drawing tokens", t, 4) for t in range(4)]


def test_what_the_attention_does_not_know_sends_a_family_to_its_own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = wrap(tiny(), "auto")
    asked = prompts(5, 9)
    drawn = Embedded(policy, 12, ENDS).draw(asked, 4, (1,))
    monkeypatch.setattr(branches, "HARMLESS", set())
    again = Embedded(policy, 12, ENDS).draw(asked, 4, (1,))
    assert float((logp_of(drawn) - logp_of(again)).abs().max()) < 5e-5
    assert not same(drawn, again)
    with pytest.raises(UserError, match="positions"):
        Embedded(policy, 256, ENDS).draw(asked, 1, (1,))

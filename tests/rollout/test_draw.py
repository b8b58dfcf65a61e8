"""The draw of a token: exact, from a number that is a hash of what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from preftune.rollout.draw import most_likely, pick, stream_keys, uniform

PROMPTS = [np.array(ids, np.int32) for ids in ([5, 6], [5, 6, 7], [8])]


@pytest.mark.parametrize("vocab", [3, 256, 300, 512, 8192])
def test_a_draw_is_the_inverse_in_double(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(1, vocab, generator=generator) * 3
    logits[0, [0, vocab - 1]] = -torch.inf
    u = torch.rand(2000, dtype=torch.float64, generator=generator)
    u[:2] = torch.tensor([0.0, 1 - 2.0**-53])
    token, logp = pick(logits.repeat(len(u), 1), u)
    exact = torch.log_softmax(logits.double(), 1)[0]
    cumulated = exact.exp().cumsum(0)
    edge = (cumulated[None] - u[:, None]).abs().min(1).values < 1e-6  # within rounding either side is right
    assert torch.equal(token[~edge], torch.searchsorted(cumulated, u, right=True)[~edge])
    assert bool(torch.isfinite(logp).all())  # so no token of probability 0
    assert float((logp - exact[token]).abs().max()) < 5e-6
    likely, its_logp = most_likely(logits.clone())
    assert int(likely) == int(exact.argmax())
    assert float(its_logp) == pytest.approx(float(exact.max()), abs=1e-6)


def test_random_numbers_depend_on_seed_prompt_response_and_token_alone() -> None:
    keys = stream_keys(PROMPTS, 4, (1, 2)).reshape(3, 4)
    assert np.array_equal(keys[1:2, :2].reshape(-1), stream_keys(PROMPTS[1:2], 2, (1, 2)))
    assert len(np.unique(keys)) == 12
    assert not np.isin(stream_keys(PROMPTS, 4, (1, 3)), keys).any()
    assert not np.isin(stream_keys(PROMPTS, 4, (12,)), keys).any()
    numbers = np.array([uniform(stream_keys(PROMPTS, 100, (7,)), t) for t in range(100)])
    assert 0 <= numbers.min() < 1e-3
    assert 0.999 < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 4 * (12 * numbers.size) ** -0.5
    for a, b in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):  # next token, next response
        assert abs(np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1]) < 4 * a.size**-0.5

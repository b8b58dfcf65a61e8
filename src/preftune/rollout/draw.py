"""Drawing tokens: what a sampler gives, the random number of a token, and the draw from a row of logits.

The random number is a hash of what it is for and not the state of a generator, so that which other responses are drawn,
in what order and by which process, changes none. Held by tests/rollout/test_draw.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's step: 2^64 over the golden ratio, odd
BLOCK = 256  # tokens of the vocabulary that are summed together before they are cumulated


@dataclass(frozen=True, slots=True)
class Drawn:
    """Responses to one prompt.

    ids: int32, one array a response, with the end token where it was drawn; logp: float32, of each token, in nats,
    under the distribution that it was drawn from; ended: whether the response has its end token.
    """

    ids: tuple[np.ndarray, ...]
    logp: tuple[np.ndarray, ...]
    ended: tuple[bool, ...]


class Sampler(Protocol):
    """Draws `count` responses to each prompt (int32 ids), one `Drawn` a prompt; seed: words, such as run and phase."""

    def draw(self, prompts: Sequence[np.ndarray], count: int, seed: Sequence[int]) -> list[Drawn]: ...


def prompt_key(prompt: np.ndarray, seed: Sequence[int]) -> int:
    """64 bits that name what is drawn to a prompt under a seed.

    Equal prompts share them: what is to be drawn anew is drawn under another seed.
    """
    words = ",".join(str(int(word)) for word in seed).encode() + b":"
    digest = hashlib.blake2b(words + np.asarray(prompt, "<i4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def stream_keys(prompts: Sequence[np.ndarray], count: int, seed: Sequence[int]) -> np.ndarray:
    """(prompts * count,) uint64: where the random numbers of response k to each prompt begin."""
    of_prompt = np.array([prompt_key(ids, seed) for ids in prompts], np.uint64)
    return _mixed(of_prompt[:, None] + _multiples(np.arange(count)[None])).reshape(-1)


def uniform(keys: np.ndarray, t: int) -> np.ndarray:
    """(rows,) fp64 in [0, 1): the random number of token t of each row, from its stream's key (SplitMix64)."""
    return (_mixed(keys + _multiples(np.array([t]))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _multiples(n: np.ndarray) -> np.ndarray:
    """(n + 1) times the golden step, modulo 2^64."""
    return (n.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)


def _mixed(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014, doi.org/10.1145/2660193.2660195, variant 13)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


# For a row with probabilities p and a number u in [0, 1), the token is the first v with
#
#     p_0 + ... + p_v > u (p_0 + ... + p_{V-1})
#
# Strictly, so that a token of probability 0 is never drawn. Cumulating V numbers costs as much as the head's product;
# blocks are summed first, the sums cumulated in fp64, and then only the block in which u falls.
def pick(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row, the inverse of its distribution at u, and its log-probability in fp32; overwrites the logits.

    logits: (rows, vocab) in fp32 or wider; u: (rows,) fp64 in [0, 1).
    """
    probs = torch.softmax(logits, 1, out=logits)
    vocab = probs.shape[1]
    whole = vocab - vocab % BLOCK
    sums = probs[:, :whole].unflatten(1, (-1, BLOCK)).sum(2)
    if whole < vocab:
        sums = torch.cat([sums, probs[:, whole:].sum(1, keepdim=True)], 1)
    cumulated = sums.double().cumsum(1)
    total = cumulated[:, -1:]
    target = u[:, None] * total
    block = torch.searchsorted(cumulated, target, right=True).clamp_(max=sums.shape[1] - 1)
    before = torch.where(block > 0, cumulated.gather(1, (block - 1).clamp(min=0)), 0)
    words = block * BLOCK + torch.arange(BLOCK, device=logits.device)
    part = probs.gather(1, words.clamp(max=vocab - 1)).double().masked_fill_(words >= vocab, 0)
    within = part.cumsum(1)
    below_its_sum = within[:, -1:] * (1 - 2.0**-52)  # the block's own sum in fp32 may be larger
    place = torch.searchsorted(within, torch.minimum(target - before, below_its_sum), right=True).clamp_(max=BLOCK - 1)
    logp = part.gather(1, place).log() - total.log()
    return (block * BLOCK + place)[:, 0], logp[:, 0].float()


def most_likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely token of each row, the first of equals, and its log-probability in fp32."""
    logp, token = logits.max(1)
    return token, (logp - logits.logsumexp(1)).float()

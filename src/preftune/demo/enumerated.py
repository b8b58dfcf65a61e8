"""A world so small that every response can be listed: KL, expected reward and the optimum are sums, not estimates.

Responses are all strings of at most `longest` of the `symbols` content tokens; those that are shorter end with the end
token. A policy is a table of logits, (groups, prefixes, vocab), with one row for each beginning of a response; the last
token of the vocabulary is the end token. Shapes below name these axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np


@dataclass(frozen=True, eq=False, slots=True)
class Enumerated:
    """The responses of a world, ordered by their number of content tokens, then as numbers are.

    prefix, token: (responses, tokens) int, the beginning at which each token is chosen, and the token;
    mask: (responses, tokens) bool, which of these tokens a response has;
    below: (prefixes, symbols) the beginning that each content token leads to, -1 where the response is cut there.
    """

    symbols: int
    longest: int
    prefix: np.ndarray
    token: np.ndarray
    mask: np.ndarray
    below: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """(responses,) tokens of each response, the end token included."""
        return self.mask.sum(-1)

    @property
    def counts(self) -> np.ndarray:
        """(responses, vocab) how often each token stands in each response: features whose weighted sum is a reward
        that a table of logits can follow exactly."""
        return np.stack([((self.token == v) & self.mask).sum(-1) for v in range(self.symbols + 1)], -1)

    def logp(self, logits: np.ndarray) -> np.ndarray:
        """(groups, prefixes, vocab) -> (groups, responses): log-probability of every response, in nats."""
        token_logp = _log_softmax(logits)[:, self.prefix, self.token]
        return np.where(self.mask, token_logp, 0.0).sum(-1)

    def tilted(self, logits: np.ndarray, reward: np.ndarray, beta: float) -> np.ndarray:
        """Logits of the policy proportional to pi_ref exp(reward / beta), computed from the last token backwards.

        logits: of the reference; reward: (groups, responses) or (responses,). The value of a beginning is the
        logarithm of the tilted mass of all responses below it; adding it to a token's log-probability gives its logit.
        """
        tilted = _log_softmax(logits)
        last = self.tokens - 1
        responses = np.arange(len(last))
        tilted[:, self.prefix[responses, last], self.token[responses, last]] += reward / beta
        value = np.empty(tilted.shape[:2])
        for prefix in range(len(self.below) - 1, -1, -1):  # longer beginnings have higher indices
            for symbol, child in enumerate(self.below[prefix]):
                if child >= 0:
                    tilted[:, prefix, symbol] += value[:, child]
            value[:, prefix] = np.logaddexp.reduce(tilted[:, prefix], axis=-1)
        return tilted


def enumerated(symbols: int = 4, longest: int = 6) -> Enumerated:
    """List a world: symbols^0 + ... + symbols^longest responses, 5461 by default."""
    prefixes = [prefix for size in range(longest) for prefix in product(range(symbols), repeat=size)]
    index = {prefix: i for i, prefix in enumerate(prefixes)}
    responses = [(*prefix, symbols) for prefix in prefixes] + list(product(range(symbols), repeat=longest))
    prefix, token = np.zeros((2, len(responses), longest), np.int64)
    mask = np.zeros((len(responses), longest), bool)
    for row, response in enumerate(responses):
        size = len(response)
        prefix[row, :size] = [index[response[:k]] for k in range(size)]
        token[row, :size] = response
        mask[row, :size] = True
    below = np.array([[index.get((*start, symbol), -1) for symbol in range(symbols)] for start in prefixes])
    return Enumerated(symbols, longest, prefix, token, mask, below)


def kl(logp: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(groups, responses) twice -> (groups,): KL of the first from the second, in nats."""
    return (np.exp(logp) * (logp - other)).sum(-1)


def expected(logp: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(groups, responses), values of that shape or (responses,) -> (groups,): mean of the values under the policy."""
    return (np.exp(logp) * values).sum(-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

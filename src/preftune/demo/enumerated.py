"""A world so small that every response can be listed: KL, expected reward and the optimum are sums, not estimates.

Responses are all strings of `symbols` content tokens that end with the end token or are cut at `longest` tokens. A
policy is a table of logits, (groups, prefixes, vocab), with one row for each beginning of a response; the last token of
the vocabulary is the end token. Shapes below name these axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np


@dataclass(frozen=True, eq=False, slots=True)
class Enumerated:
    """The responses of a world, ordered by how many content tokens they have, then as numbers are.

    prefix, token: (responses, tokens) int, the beginning at which each token is chosen, and the token; tokens that a
    response does not have are masked out by `there`, (responses, tokens) bool.
    below: (prefixes, symbols) the beginning that each content token leads to, -1 where the response is cut there.
    """

    symbols: int
    longest: int
    prefix: np.ndarray
    token: np.ndarray
    there: np.ndarray
    below: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """(responses,) tokens of each response, the end token included."""
        return self.there.sum(-1)

    @property
    def counts(self) -> np.ndarray:
        """(responses, vocab) how often each token stands in each response: features whose weighted sum is a reward
        that a table of logits can follow exactly."""
        return np.stack([((self.token == v) & self.there).sum(-1) for v in range(self.symbols + 1)], -1)

    def logp(self, logits: np.ndarray) -> np.ndarray:
        """(groups, prefixes, vocab) -> (groups, responses): log-probability of every response, in nats."""
        chosen = _log_softmax(logits)[:, self.prefix, self.token]
        return np.where(self.there, chosen, 0.0).sum(-1)

    def tilted(self, logits: np.ndarray, reward: np.ndarray, beta: float) -> np.ndarray:
        """Logits of the policy proportional to pi_ref exp(reward / beta), found from the last token backwards.

        logits: of the reference; reward: (groups, responses) or (responses,). The value of a beginning is the
        logarithm of the tilted mass of all responses below it; adding it to a token's log-probability gives its logit.
        """
        step = _log_softmax(logits)
        reward = np.broadcast_to(reward, (len(logits), len(self.prefix)))
        last = self.tokens - 1
        rows = np.arange(len(last))
        ends = np.zeros_like(step)  # what reward / beta adds where a response ends
        ends[:, self.prefix[rows, last], self.token[rows, last]] = reward / beta
        found, value = np.empty_like(step), np.empty(step.shape[:2])
        for prefix in range(len(self.below) - 1, -1, -1):  # longer beginnings stand later
            ahead = [0.0 if child < 0 else value[:, child] for child in self.below[prefix]]
            found[:, prefix] = step[:, prefix] + ends[:, prefix]
            for symbol, worth in enumerate(ahead):
                found[:, prefix, symbol] += worth
            value[:, prefix] = np.logaddexp.reduce(found[:, prefix], axis=-1)
        return found


def enumerated(symbols: int = 4, longest: int = 6) -> Enumerated:
    """List a world: symbols^0 + ... + symbols^longest responses, 5461 by default."""
    begun = [prefix for size in range(longest) for prefix in product(range(symbols), repeat=size)]
    place = {prefix: index for index, prefix in enumerate(begun)}
    whole = [(*prefix, symbols) for prefix in begun] + list(product(range(symbols), repeat=longest))
    prefix, token = np.zeros((2, len(whole), longest), np.int64)
    there = np.zeros((len(whole), longest), bool)
    for row, response in enumerate(whole):
        size = len(response)
        prefix[row, :size] = [place[response[:k]] for k in range(size)]
        token[row, :size] = response
        there[row, :size] = True
    below = np.array([[place.get((*start, symbol), -1) for symbol in range(symbols)] for start in begun])
    return Enumerated(symbols, longest, prefix, token, there, below)


def kl(logp: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(groups, responses) twice -> (groups,): KL of the first from the second, in nats."""
    return (np.exp(logp) * (logp - other)).sum(-1)


def expected(logp: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(groups, responses), values (responses,) or the same -> (groups,): mean of the values under the policy."""
    return (np.exp(logp) * values).sum(-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

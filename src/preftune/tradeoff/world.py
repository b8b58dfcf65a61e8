"""A world in which every response can be listed, with a table of logits as the policy: nothing about it is estimated.

Responses are all strings of at most so many content tokens; those that are shorter end with the end token, the last one
of the vocabulary. A policy is a table of logits, (groups, prefixes, vocab), with one row for each beginning of a
response. A group is a prompt in one of several independent runs; runs stand side by side, so that one pass trains them
all. Held by tests/numbers/test_rollouts.py and tests/tradeoff.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from torch import Tensor

from preftune.frontier.measure import Frontier
from preftune.objective.responses import Draws

COUNT_REWARDS = (1.0, -0.5, 0.3, 0.2)  # reward of each symbol and of the end token; the noise comes on top


@dataclass(frozen=True, eq=False)
class Enumerated:
    """All responses, ordered by their number of content tokens, then as numbers are.

    symbols: how many content tokens there are;
    prefix, token: (responses, tokens) the beginning at which each token is chosen, and the token;
    mask: (responses, tokens) bool, which of these tokens a response has;
    below: for each beginning, the one that each content token leads to, -1 where the response is cut there.
    """

    symbols: int
    prefix: Tensor
    token: Tensor
    mask: Tensor
    below: list[list[int]]

    @cached_property
    def tokens(self) -> Tensor:
        """(responses,) fp64, tokens of each response, the end token included."""
        return self.mask.sum(-1).double()

    @cached_property
    def last(self) -> tuple[Tensor, Tensor]:
        """(responses,) each: the beginning at which a response's last token is chosen, and that token."""
        place = (torch.arange(len(self.mask)), self.mask.sum(-1) - 1)
        return self.prefix[place], self.token[place]

    @cached_property
    def counts(self) -> Tensor:
        """(responses, vocab) fp64, how often each token stands in each response: features whose weighted sum is a
        reward that a table of logits can follow exactly."""
        return torch.stack([((self.token == v) & self.mask).sum(-1) for v in range(self.symbols + 1)], -1).double()

    def logp(self, logits: Tensor) -> Tensor:
        """(groups, prefixes, vocab) -> (groups, responses): log-probability of every response, in nats."""
        token_logp = logits.log_softmax(-1)[:, self.prefix, self.token]
        return torch.where(self.mask, token_logp, 0.0).sum(-1)

    def tilted(self, logits: Tensor, reward: Tensor, beta: float) -> Tensor:
        """Logits of the policy proportional to pi_ref exp(reward / beta), computed from the last token backwards.

        logits: of the reference; reward: (groups, responses) or (responses,). The value of a beginning is the
        logarithm of the tilted mass of all responses below it; adding it to a token's log-probability gives its logit.
        """
        tilted = logits - _log_sum(logits)[..., None]
        prefix, token = self.last
        tilted[:, prefix, token] += reward / beta
        value = torch.empty_like(tilted[..., 0])
        for start in range(len(self.below) - 1, -1, -1):  # longer beginnings have higher indices
            for symbol, child in enumerate(self.below[start]):
                if child >= 0:
                    tilted[:, start, symbol] += value[:, child]
            value[:, start] = _log_sum(tilted[:, start])
        return tilted


def _log_sum(logits: Tensor) -> Tensor:
    """(..., vocab) -> (...,), added up one after the other, by which the bits of recorded results are fixed."""
    return torch.from_numpy(np.logaddexp.reduce(logits.numpy(), -1))


def enumerated(symbols: int = 4, longest: int = 6) -> Enumerated:
    """List all responses of at most `longest` tokens: symbols^0 + ... + symbols^longest, 5461 by default."""
    prefixes = [prefix for size in range(longest) for prefix in product(range(symbols), repeat=size)]
    index = {prefix: i for i, prefix in enumerate(prefixes)}
    responses = [(*prefix, symbols) for prefix in prefixes] + list(product(range(symbols), repeat=longest))
    prefix, token = torch.zeros(2, len(responses), longest, dtype=torch.int64)
    mask = torch.zeros(len(responses), longest, dtype=torch.bool)
    for row, response in enumerate(responses):
        size = len(response)
        prefix[row, :size] = torch.tensor([index[response[:k]] for k in range(size)])
        token[row, :size] = torch.tensor(response)
        mask[row, :size] = True
    below = [[index.get((*start, symbol), -1) for symbol in range(symbols)] for start in prefixes]
    return Enumerated(symbols, prefix, token, mask, below)


def kl(logp: Tensor, other: Tensor) -> Tensor:
    """(groups, responses) twice -> (groups,): KL of the first from the second, in nats."""
    return (logp.exp() * (logp - other)).sum(-1)


def expected(logp: Tensor, values: Tensor) -> Tensor:
    """(groups, responses), values of that shape or (responses,) -> (groups,): mean of the values under the policy."""
    return (logp.exp() * values).sum(-1)


@dataclass(frozen=True, eq=False, slots=True)
class Members:
    """Where the tokens of some responses stand: group, prefix, token and response are (members,), at is (responses,).

    at: which response of the world each one is; its group is `group_of`, (responses,).
    """

    group: Tensor
    prefix: Tensor
    token: Tensor
    response: Tensor
    group_of: Tensor
    at: Tensor

    def logp(self, logits: Tensor) -> Tensor:
        """(groups, prefixes, vocab) -> (members,) log-probability of each token, in nats."""
        return logits.log_softmax(-1)[self.group, self.prefix, self.token]

    def values(self, table: Tensor) -> Tensor:
        """(groups, prefixes) -> (members,) the number of the state before each token."""
        return table[self.group, self.prefix]


@dataclass(frozen=True, eq=False)
class World:
    """reference: (groups, prefixes, vocab) logits; reward: (groups, responses), fp64; groups = runs x prompts."""

    tree: Enumerated
    reference: Tensor
    reward: Tensor
    prompts: int

    @cached_property
    def ref_logp(self) -> Tensor:
        """(groups, responses) under the reference."""
        return self.logp(self.reference)

    def logp(self, logits: Tensor) -> Tensor:
        """(groups, prefixes, vocab) -> (groups, responses): log-probability of every response, in nats."""
        return self.tree.logp(logits)

    def tilted(self, score: Tensor, beta: float) -> Tensor:
        """(groups, responses) -> that shape: log-probability under the reference times exp(score / beta)."""
        return (self.ref_logp + score / beta).log_softmax(-1)

    def optimum(self, beta: float) -> Tensor:
        """(groups, prefixes, vocab) logits of the policy of most reward - beta KL."""
        return self.tree.tilted(self.reference, self.reward, beta)

    def members(self, group_of: Tensor, at: Tensor) -> Members:
        """The tokens of responses `at`, each to the prompt of `group_of`; both (responses,)."""
        mask = self.tree.mask[at]
        response = torch.arange(len(at))[:, None].expand_as(mask)[mask]
        prefix, token = self.tree.prefix[at][mask], self.tree.token[at][mask]
        return Members(group_of[response], prefix, token, response, group_of, at)

    def draws(
        self, members: Members, policy: Tensor, score: Tensor, values: Tensor | None = None, group: Tensor | None = None
    ) -> Draws:
        """The phase that these responses of a policy are. score: (groups, responses); values: (groups, prefixes).

        group: (responses,) which of them have the same baseline; those to the same prompt unless given.
        """
        _, last_token = self.tree.last
        return Draws(
            sampled=members.logp(policy), reference=members.logp(self.reference),
            value=None if values is None else members.values(values), response=members.response,
            group=members.group_of if group is None else group, score=score[members.group_of, members.at],
            ended=last_token[members.at] == self.tree.symbols,
        )  # fmt: skip

    def run(self, index: int) -> World:
        """One of the runs alone."""
        groups = slice(index * self.prompts, (index + 1) * self.prompts)
        return World(self.tree, self.reference[groups], self.reward[groups], self.prompts)

    def by_run(self, values: Tensor) -> np.ndarray:
        """(groups,) -> (runs,): the mean over the prompts of each run."""
        return values.view(-1, self.prompts).mean(1).numpy()

    @cached_property
    def frontier(self) -> Frontier:
        """The ceiling over the prompts of the first run, which are those of every run."""
        return Frontier.exact(self.reward[: self.prompts].numpy(), self.ref_logp[: self.prompts].numpy())

    def measured(self, logp: Tensor) -> np.ndarray:
        """(groups, responses) -> (3, runs): KL from the reference in nats, true reward, and the reward that the best
        policy of that KL has on top; each the mean over the prompts."""
        distance, reward = self.by_run(kl(logp, self.ref_logp)), self.by_run(expected(logp, self.reward))
        gap = [self.frontier.gap(float(r), float(k)) for k, r in zip(distance, reward, strict=True)]
        return np.array([distance, reward, gap])


def make_world(
    *, prompts: int = 4, runs: int = 1, noise: float = 0.3, rare: bool = False, weak: float = 0.0, seed: int = 0
) -> World:
    """A world of 121 responses to each prompt: the reward counts symbols, and noise is what counts do not say.

    rare: the best responses begin with a symbol that the reference hardly ever says; weak: how far the reference is
    turned away from the reward. The same prompts stand in every run.
    """
    rng = np.random.default_rng(seed)
    tree = enumerated(3, 4)
    reference = torch.from_numpy(rng.normal(size=(prompts, len(tree.below), 4)))
    reference[..., 3] += 0.5
    counted = tree.counts.numpy() @ np.array(COUNT_REWARDS)
    reward = torch.from_numpy(counted + noise * rng.normal(size=(prompts, len(counted))))
    if rare:
        reference[:, 0, 1] -= 5
        reward += 3.0 * (tree.token[:, 0] == 1)
    if weak:
        reference = tree.tilted(reference, -weak * reward, 1.0)
    return World(tree, reference.repeat(runs, 1, 1), reward.repeat(runs, 1), prompts)

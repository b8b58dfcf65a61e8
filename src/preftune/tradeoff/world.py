"""A world in which every response can be listed, with a table of logits as the policy: nothing about it is estimated.

A group is a prompt in one of several independent runs; runs stand side by side, so that one pass trains them all.
Held by tests/numbers/test_rollouts.py and tests/tradeoff/test_tradeoff.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from preftune.demo.enumerated import Enumerated, enumerated
from preftune.frontier.measure import Frontier
from preftune.objective.responses import Draws

COUNT_REWARDS = (1.0, -0.5, 0.3, 0.2)  # reward of each symbol and of the end token; the noise comes on top


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
    def prefix(self) -> Tensor:
        """(responses, tokens) the beginning at which each token is chosen."""
        return torch.from_numpy(self.tree.prefix)

    @cached_property
    def token(self) -> Tensor:
        """(responses, tokens)."""
        return torch.from_numpy(self.tree.token)

    @cached_property
    def mask(self) -> Tensor:
        """(responses, tokens) bool, which tokens a response has."""
        return torch.from_numpy(self.tree.mask)

    @cached_property
    def tokens(self) -> Tensor:
        """(responses,) how many tokens each response has, fp64."""
        return self.mask.sum(-1).double()

    @cached_property
    def ended(self) -> Tensor:
        """(responses,) bool, whether a response has its end token."""
        last = self.tree.tokens - 1
        return torch.from_numpy(self.tree.token[np.arange(len(last)), last] == self.tree.symbols)

    @cached_property
    def counts(self) -> Tensor:
        """(responses, vocab) how often each token stands in each response, fp64."""
        return torch.from_numpy(self.tree.counts).double()

    @cached_property
    def ref_logp(self) -> Tensor:
        """(groups, responses) under the reference."""
        return self.logp(self.reference)

    def logp(self, logits: Tensor) -> Tensor:
        """(groups, prefixes, vocab) -> (groups, responses): log-probability of every response, in nats."""
        token_logp = logits.log_softmax(-1)[:, self.prefix, self.token]
        return torch.where(self.mask, token_logp, 0.0).sum(-1)

    def tilted(self, score: Tensor, beta: float) -> Tensor:
        """(groups, responses) -> that shape: log-probability under the reference times exp(score / beta)."""
        return (self.ref_logp + score / beta).log_softmax(-1)

    def optimum(self, beta: float) -> Tensor:
        """(groups, prefixes, vocab) logits of the policy of most reward - beta KL."""
        return torch.from_numpy(self.tree.tilted(self.reference.numpy(), self.reward.numpy(), beta))

    def members(self, group_of: Tensor, at: Tensor) -> Members:
        """The tokens of responses `at`, each to the prompt of `group_of`; both (responses,)."""
        mask = self.mask[at]
        response = torch.arange(len(at))[:, None].expand_as(mask)[mask]
        return Members(group_of[response], self.prefix[at][mask], self.token[at][mask], response, group_of, at)

    def draws(
        self, members: Members, policy: Tensor, score: Tensor, values: Tensor | None = None, group: Tensor | None = None
    ) -> Draws:
        """The phase that these responses of a policy are. score: (groups, responses); values: (groups, prefixes).

        group: (responses,) which of them have the same baseline; those to the same prompt unless given.
        """
        return Draws(
            sampled=members.logp(policy), reference=members.logp(self.reference),
            value=None if values is None else members.values(values), response=members.response,
            group=members.group_of if group is None else group, score=score[members.group_of, members.at],
            ended=self.ended[members.at],
        )  # fmt: skip

    def run(self, index: int) -> World:
        """One of the runs alone."""
        groups = slice(index * self.prompts, (index + 1) * self.prompts)
        return World(self.tree, self.reference[groups], self.reward[groups], self.prompts)

    @cached_property
    def frontier(self) -> Frontier:
        """The ceiling over the prompts of the first run, which are those of every run."""
        return Frontier.exact(self.reward[: self.prompts].numpy(), self.ref_logp[: self.prompts].numpy())

    def measured(self, logp: Tensor) -> np.ndarray:
        """(groups, responses) -> (runs, 3): KL from the reference in nats, true reward, and the reward that the best
        policy of that KL has on top; each the mean over the prompts."""
        share = logp.exp()
        kl = (share * (logp - self.ref_logp)).sum(-1).view(-1, self.prompts).mean(1)
        reward = (share * self.reward).sum(-1).view(-1, self.prompts).mean(1)
        pairs = [(float(k), float(r)) for k, r in zip(kl, reward, strict=True)]
        return np.array([(k, r, self.frontier.gap(r, k)) for k, r in pairs])


def make_world(
    *, prompts: int = 4, runs: int = 1, noise: float = 0.3, rare: bool = False, weak: float = 0.0, seed: int = 0
) -> World:
    """A world of 121 responses to each prompt: the reward counts symbols, and noise is what counts do not say.

    rare: the best responses begin with a symbol that the reference hardly ever says; weak: how far the reference is
    turned away from the reward. The same prompts stand in every run.
    """
    rng = np.random.default_rng(seed)
    tree = enumerated(3, 4)
    reference = rng.normal(size=(prompts, len(tree.below), 4))
    reference[..., 3] += 0.5
    reward = (tree.counts @ np.array(COUNT_REWARDS))[None] + noise * rng.normal(size=(prompts, len(tree.token)))
    if rare:
        reference[:, 0, 1] -= 5
        reward = reward + 3.0 * (tree.token[:, 0] == 1)
    if weak:
        reference = tree.tilted(reference, -weak * reward, 1.0)
    tiled = [torch.from_numpy(np.tile(table, (runs, *[1] * (table.ndim - 1)))) for table in (reference, reward)]
    return World(tree, tiled[0], tiled[1], prompts)

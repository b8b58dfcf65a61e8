"""Gradients of online objectives as sums over every response of a world: nothing is drawn, nothing is estimated."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from torch import Tensor

from preftune import objective as o
from preftune.objective.responses import Draws, Rollouts
from preftune.tradeoff.world import Members, World, enumerated, expected, kl, make_world

BETA = 0.5
WORLD = make_world(prompts=2)
OPTIMUM = WORLD.optimum(BETA)
_NOISE = torch.from_numpy(np.random.default_rng(5).normal(size=tuple(OPTIMUM.shape)))
BETWEEN = (OPTIMUM + WORLD.reference) / 2 + 0.3 * _NOISE
SURROGATE = o.RLOO(beta=BETA)  # the call of every online objective without a clip

Advantage = Callable[[Draws, Tensor], Tensor]  # draws and weights -> (members,)
Extra = Callable[[Tensor, Draws], Tensor]  # token_logp and draws -> (members,) a loss of its own
Correct = Callable[[Tensor, Draws, Tensor], Tensor]  # advantage, draws and the sampler's logp -> (members,)


def small_world() -> World:
    """Seven responses a prompt, so that all groups of three can be listed."""
    rng = np.random.default_rng(1)
    tree = enumerated(2, 2)
    reference, reward = rng.normal(size=(2, len(tree.below), 3)), rng.normal(size=(2, len(tree.token)))
    return World(tree, torch.from_numpy(reference), torch.from_numpy(reward), prompts=2)


def derivative(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), [leaf])
    return gradient


def true_gradient(logits: Tensor, world: World = WORLD) -> Tensor:
    """Of -(E score - beta KL), by autograd of the sum itself."""

    def loss(leaf: Tensor) -> Tensor:
        logp = world.logp(leaf)
        return -expected(logp, world.reward - BETA * (logp - world.ref_logp)).mean()

    return derivative(loss, logits)


def every_response(world: World, logits: Tensor) -> tuple[Members, Tensor]:
    """The tokens of all responses to all prompts, and the weight pi(y) / prompts of each response."""
    groups, count = world.reward.shape
    members = world.members(torch.arange(groups).repeat_interleave(count), torch.arange(count).repeat(groups))
    return members, world.logp(logits).exp().reshape(-1) / groups


def every_group(world: World, logits: Tensor, size: int) -> tuple[Members, Tensor, Tensor]:
    """The tokens of all groups of `size` responses to each prompt, the group and the weight of each response."""
    groups, count = world.reward.shape
    at = torch.tensor(list(product(range(count), repeat=size)))  # (lists, size)
    group_of = torch.arange(groups).repeat_interleave(at.numel())
    logp = world.logp(logits)
    weight = (logp[:, at].sum(-1).exp() / groups / size).repeat_interleave(size, 1).reshape(-1)
    members = world.members(group_of, at.reshape(-1).repeat(groups))
    return members, torch.arange(len(group_of)) // size, weight


def surrogate_gradient(
    advantage: Advantage,
    logits: Tensor,
    *,
    values: Tensor | None = None,
    extra: Extra | None = None,
    temperature: float = 1.0,
    correct: Correct | None = None,
) -> Tensor:
    """Of the library's surrogate over every response, drawn at a temperature; advantages are numbers."""
    members, weight = every_response(WORLD, logits / temperature)
    draws = WORLD.draws(members, logits, WORLD.reward, values)
    advantages = advantage(draws, weight)
    if correct is not None:
        advantages = correct(advantages, draws, members.logp(logits / temperature))

    def loss(leaf: Tensor) -> Tensor:
        token_logp = members.logp(leaf)
        value = SURROGATE(Rollouts(token_logp, draws.sampled, advantages, draws.response, weight))
        if extra is not None:
            value = value + draws.sum(extra(token_logp, draws))
        return (weight * value).sum()

    return derivative(loss, logits)


def exact_values(logits: Tensor) -> Tensor:
    """(groups, prefixes) what is still to come of score and KL penalty from each beginning."""
    logp, reference = logits.log_softmax(-1), WORLD.reference.log_softmax(-1)
    prefix, token = WORLD.tree.last
    final = torch.zeros_like(logp)
    final[:, prefix, token] = WORLD.reward
    values = torch.zeros_like(logp[..., 0])
    nothing = torch.zeros(len(logits), dtype=logits.dtype)
    for start in range(len(WORLD.tree.below) - 1, -1, -1):
        after = [nothing if child < 0 else values[:, child] for child in WORLD.tree.below[start]]
        to_come = final[:, start] + torch.stack([*after, nothing], -1)
        gain = to_come - BETA * (logp[:, start] - reference[:, start])
        values[:, start] = expected(logp[:, start], gain)
    return values


def kl_to_optimum(logits: Tensor) -> float:
    """Mean KL(pi, pi*) over the prompts, in nats."""
    return float(kl(WORLD.logp(logits), WORLD.logp(OPTIMUM)).mean())

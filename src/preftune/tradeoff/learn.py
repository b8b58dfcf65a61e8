"""Learning in the exact world: online from draws of the policy, offline from judged pairs of the reference.

The formulas are those of `preftune.objective`; only the model is a table. Held by tests/numbers/test_rollouts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from preftune.objective import PPO, Formula, loss_of
from preftune.objective.base import PairFormula
from preftune.objective.labels import ScoreLabels
from preftune.objective.responses import Draws, Pairs, Responses, Rollouts, Values
from preftune.objective.rollouts import RolloutFormula
from preftune.tradeoff.world import Members, World

DRAW_SEED = 0
Watch = Callable[[int, Tensor], None]  # the number of phases done and the policy
Losses = Callable[[], list[Tensor]]  # of the policy and, for PPO, of the values


class Schedule(Struct, frozen=True):
    """How long and how fast to learn. phases: rounds of drawing; draws: groups a prompt and phase, of `responses` each;
    epochs: updates on a phase; lr, value_lr: of Adam, both falling to 0 in a line."""

    phases: int = 300
    draws: int = 4
    responses: int = 8
    epochs: int = 1
    lr: float = 0.05
    value_lr: float = 0.1


class Recipe(Struct, frozen=True):
    """How a policy learns from its own draws.

    labels: what scores become for an objective of pairs, which gets all pairs of a group; kl_loss: whether the KL is a
    loss of each token, as it is published for GRPO, and no part of the reward.
    """

    objective: RolloutFormula | PairFormula
    schedule: Schedule = Schedule()
    labels: ScoreLabels = "soft"
    kl_loss: bool = False


def draw(world: World, logits: Tensor, schedule: Schedule, generator: torch.Generator) -> tuple[Members, Tensor]:
    """The tokens of a phase, and (responses,) which of its groups each response belongs to."""
    count = schedule.draws * schedule.responses
    at = torch.multinomial(world.logp(logits).exp(), count, True, generator=generator).reshape(-1)
    group_of = torch.arange(len(logits)).repeat_interleave(count)
    return world.members(group_of, at), torch.arange(len(at)) // schedule.responses


def learn_online(world: World, recipe: Recipe, score: Tensor, beta: float, watch: Watch | None = None) -> Tensor:
    """(groups, prefixes, vocab) the policy that a recipe learns at this beta, from draws that `score` scores.

    score: (groups, responses), the true reward or a reward model's; watch: called after each phase.
    """
    schedule, objective = recipe.schedule, replace(recipe.objective, beta=0.0 if recipe.kl_loss else beta)
    generator = torch.Generator().manual_seed(DRAW_SEED)
    logits = world.reference.clone().requires_grad_()
    values = torch.zeros(logits.shape[:2], dtype=logits.dtype, requires_grad=True)
    optimizers = [
        (torch.optim.Adam([logits], eps=1e-5), schedule.lr),
        (torch.optim.Adam([values], eps=1e-5), schedule.value_lr),
    ]
    for phase in range(schedule.phases):
        for optimizer, lr in optimizers:
            optimizer.param_groups[0]["lr"] = lr * (1 - phase / schedule.phases)
        with torch.no_grad():
            members, group = draw(world, logits, schedule, generator)
            draws = world.draws(members, logits, score, values, group)
        if isinstance(objective, RolloutFormula):
            losses = _rollout_losses(objective, draws, members, logits, values, beta if recipe.kl_loss else None)
        else:
            votes = pair_votes(draws.score.view(-1, schedule.responses), recipe.labels, generator)
            losses = _pair_losses(objective, draws, members, logits, *votes)
        for _ in range(schedule.epochs):
            for (optimizer, _), loss in zip(optimizers, losses(), strict=False):
                optimizer.zero_grad()
                (loss * len(logits)).backward()  # tables do not share weights: each has the gradient of its own mean
                optimizer.step()
        if watch is not None:
            watch(phase + 1, logits.detach())
    return logits.detach()


def _rollout_losses(
    objective: RolloutFormula, draws: Draws, members: Members, logits: Tensor, values: Tensor,
    kl_beta: float | None,
) -> Losses:  # fmt: skip
    """What an update of a phase minimizes: the mean over its responses, of the policy and, for PPO, of the values."""
    advantages = objective.advantages(draws)
    weight = torch.ones_like(draws.score)

    def losses() -> list[Tensor]:
        now = Rollouts(members.logp(logits), draws.sampled, advantages.advantage, draws.response, weight)
        policy = objective(now).mean()
        if kl_beta is not None:
            policy = policy + k3_loss(now.token_logp, draws, kl_beta).mean()
        if not isinstance(objective, PPO) or advantages.returns is None or draws.value is None:
            return [policy]
        of_values = Values(members.values(values), draws.value, advantages.returns, draws.response, weight)
        return [policy, objective.value_loss(of_values).mean()]

    return losses


def k3_loss(token_logp: Tensor, draws: Draws, beta: float) -> Tensor:
    """(members,) beta (exp(-d) - 1 + d) times the ratio to the drawing policy, d = log pi - log pi_ref."""
    d = token_logp - draws.ref_logp
    return beta * ((-d).exp() - 1 + d) * (token_logp - draws.sampled).exp()


def pair_votes(score: Tensor, labels: ScoreLabels, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(groups, K) scores -> index of the first and of the second response of all pairs, and the vote for the first.

    All are (pairs,), counted over all responses. A tie of ranks has the vote 1/2, which no update follows.
    """
    groups, count = score.shape
    first, second = torch.triu_indices(count, count, 1)
    start = torch.arange(groups)[:, None] * count
    difference = (score[:, first] - score[:, second]).reshape(-1)
    if labels == "ranks":
        vote = (difference.sign() + 1) / 2
    else:
        vote = difference.sigmoid()
        vote = torch.bernoulli(vote, generator=generator) if labels == "drawn" else vote
    return (start + first).reshape(-1), (start + second).reshape(-1), vote


def _pair_losses(
    objective: Formula, draws: Draws, members: Members, logits: Tensor, first: Tensor, second: Tensor, vote: Tensor
) -> Losses:
    """What an update of a phase minimizes: the mean over all pairs of all groups."""
    tokens = draws.sum(torch.ones_like(draws.sampled))
    reference = draws.sum(draws.ref_logp)

    def losses() -> list[Tensor]:
        responses = Responses(draws.sum(members.logp(logits)), tokens, reference, draws.score)
        pairs = Pairs(responses[first], responses[second], torch.ones_like(vote), vote)
        return [loss_of(objective, pairs).mean()]

    return losses


def minimize(loss: Callable[[], Tensor], tables: Sequence[Tensor], steps: int, lr: float) -> None:
    """Adam with a rate that falls to 0 in a line; the tables are changed in place."""
    optimizer = torch.optim.Adam(tables, lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

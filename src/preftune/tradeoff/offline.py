"""What can be learned in the exact world without drawing: from judged pairs, by an objective or by a reward model.

Pairs are draws of a policy, the reference unless said, and their labels are draws of the Bradley-Terry model of the
true reward. Equal pairs of a prompt stand together with their number, so time does not grow with the pairs.
Held by tests/tradeoff/test_tradeoff.py.
"""

from __future__ import annotations

from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor

from preftune.objective import Formula, loss_of
from preftune.objective.responses import Demos, Pairs, Rankings, Ratings, Responses
from preftune.tradeoff.learn import minimize
from preftune.tradeoff.world import World, kl

JUDGE_SEED = 1
RIDGE = 1e-3  # weight of the squared scores of a reward model, which pairs fix only up to a number
GUMBEL_FLOOR = 1e-300


class Judged(NamedTuple):
    """Different pairs of a world; every field is (pairs,).

    group, first, second: prompt and places of the two responses; share: which part of its prompt's pairs this one is;
    vote: how often the first was preferred.
    """

    group: Tensor
    first: Tensor
    second: Tensor
    share: Tensor
    vote: Tensor

    def run(self, index: int, prompts: int) -> Judged:
        """Those of one run, with places in that run alone."""
        own = self.group // prompts == index
        group, *others = (column[own] for column in self)
        return Judged(group - index * prompts, *others)


def together(pairs: Judged, others: Judged) -> Judged:
    """Both, as one set of pairs in which each half has half of the weight."""
    both = Judged(*map(torch.cat, zip(pairs, others, strict=True)))
    return both._replace(share=both.share / 2)


def judge(world: World, count: int, seed: int = JUDGE_SEED, logp: Tensor | None = None, flipped: float = 0.0) -> Judged:
    """`count` pairs of a prompt, each judged once; pairs of equal responses are dropped.

    logp: (groups, responses) of the policy that they are drawn from; flipped: share of labels turned round at random.
    """
    generator = torch.Generator().manual_seed(seed)
    share = (world.ref_logp if logp is None else logp).exp()
    groups, responses = share.shape
    a, b = (torch.multinomial(share, count, True, generator=generator) for _ in range(2))
    first, second = torch.minimum(a, b), torch.maximum(a, b)
    better = (world.reward.gather(1, first) - world.reward.gather(1, second)).sigmoid()
    label = torch.bernoulli(better * (1 - 2 * flipped) + flipped, generator=generator)
    group = torch.arange(groups)[:, None].expand_as(first)
    differ = first != second
    key = ((group * responses + first) * responses + second)[differ]
    keys, where, times = key.unique(return_inverse=True, return_counts=True)
    wins = torch.zeros(len(keys), dtype=label.dtype).index_add(0, where, label[differ])
    second_of, rest = keys % responses, keys // responses
    return Judged(rest // responses, rest % responses, second_of, times / count, wins / times)


def examples(world: World, pairs: Judged, logp: Tensor, part: Formula) -> tuple[object, Tensor]:
    """The pairs as the examples that an objective is a formula of, and the weight of each, in pairs of a prompt.

    logp: (groups, responses) under the policy. Scores are the true rewards, for objectives that need some. KTO's drift
    is exact: the mean KL of the policy, its best case.
    """

    scored = "score" in part.reads and not part.falls_back_on_labels

    def side(at: Tensor) -> Responses:
        place = (pairs.group, at)
        tokens = world.tree.tokens[at]
        score = world.reward[place] if scored else None
        return Responses(logp[place], tokens, world.ref_logp[place], score, -0.1 * tokens)

    first, second = side(pairs.first), side(pairs.second)
    responses = _joined(first, second)
    good = torch.cat([pairs.share * pairs.vote, pairs.share * (1 - pairs.vote)])
    if part.kind == "pairs":
        return Pairs(responses, _joined(second, first), good, torch.ones_like(good)), good
    if part.kind == "demos":
        return Demos(responses, good), good
    index = torch.arange(len(good))
    other = index.roll(len(good) // 2)  # of each response, the other one of its pair
    if part.kind == "rankings":
        members = torch.stack([index, other], 1).reshape(-1)
        return Rankings(
            responses[members], index.repeat_interleave(2), torch.tensor([1, 2]).repeat(len(good)), good
        ), good
    drift = kl(logp, world.ref_logp).mean().detach().expand(1)
    mismatched = Responses(drift, torch.ones_like(drift), torch.zeros_like(drift))
    weight = torch.cat([good, good[other]]) / 2
    is_good = torch.arange(len(weight)) < len(good)
    return Ratings(_joined(responses, responses), is_good, weight, mismatched), weight


def _joined(first: Responses, second: Responses) -> Responses:
    sides = [(getattr(first, field.name), getattr(second, field.name)) for field in fields(Responses)]
    return Responses(*(None if a is None else torch.cat([a, b]) for a, b in sides))  # type: ignore[arg-type]


def learn_offline(world: World, objective: Formula, pairs: Judged, *, steps: int = 300, lr: float = 0.05) -> Tensor:
    """(groups, prefixes, vocab) the policy that an objective learns from all pairs in every step.

    An objective that needs the full step learns run by run, so that no run sees another one's pairs.
    """
    runs = len(world.reward) // world.prompts
    if objective.needs_full_step and runs > 1:
        alone = [(world.run(index), pairs.run(index, world.prompts)) for index in range(runs)]
        return torch.cat([learn_offline(own, objective, judged, steps=steps, lr=lr) for own, judged in alone])
    logits = world.reference.clone().requires_grad_()

    def loss() -> Tensor:
        table, weight = examples(world, pairs, world.logp(logits), objective)
        return (weight * loss_of(objective, table)).sum()  # type: ignore[arg-type]

    minimize(loss, [logits], steps, lr)
    return logits.detach()


def reward_model(world: World, pairs: Judged, *, linear: bool, steps: int = 300, lr: float = 0.1) -> Tensor:
    """(groups, responses) the scores that a Bradley-Terry model learns from the pairs.

    linear: one weight a symbol, the same for all prompts of a run; otherwise one number a response and prompt.
    """
    groups = len(world.reward)
    shape = (groups // world.prompts, world.tree.counts.shape[1]) if linear else tuple(world.reward.shape)
    weights = torch.zeros(shape, dtype=world.reward.dtype, requires_grad=True)

    def score() -> Tensor:
        return (weights @ world.tree.counts.T).repeat_interleave(world.prompts, 0) if linear else weights

    def loss() -> Tensor:
        scores = score()
        margin = scores[pairs.group, pairs.first] - scores[pairs.group, pairs.second]
        value = pairs.vote * margin.sigmoid().log() + (1 - pairs.vote) * (-margin).sigmoid().log()
        return -(pairs.share * value).sum() + RIDGE * (scores**2).mean(1).sum()

    minimize(loss, [weights], steps, lr)
    return score().detach()


def best_of(world: World, score: Tensor, count: int) -> Tensor:
    """(groups, responses) log-probability of the response of highest score among `count` draws of the reference."""
    order = score.argsort(-1)
    share = world.ref_logp.exp().gather(1, order)
    up_to = share.cumsum(-1).clamp(max=1.0)
    below = torch.cat([torch.zeros_like(up_to[:, :1]), up_to[:, :-1]], 1)
    chosen = (up_to**count - below**count).clamp(min=GUMBEL_FLOOR).log()
    return torch.empty_like(chosen).scatter(1, order, chosen).log_softmax(-1)

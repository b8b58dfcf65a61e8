"""Objectives of K ranked or scored responses a prompt, and the ways in which a ranking becomes pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from preftune.objective.base import RankingFormula
from preftune.objective.maths import logistic
from preftune.objective.pairs import Beta
from preftune.objective.responses import Rankings

if TYPE_CHECKING:
    from torch import Tensor

LOWEST = -1e30  # stands for minus infinity in a sum of exponentials: finite in bf16 too
Temperature = Annotated[
    float, Meta(gt=0, description="Scores are divided by it before the softmax that makes them targets.")
]


def ranking_pairs(
    ranks: Sequence[int], how: Literal["all", "best"] = "all"
) -> tuple[list[int], list[int], list[float]]:
    """Index of the better response, index of the worse one, and weight of each pair that a ranking gives.

    all: every two responses of different rank, as InstructGPT does; best: each response of rank 1 against every lower
    one. Ties make no pair. The weights sum to 1, so that a ranking counts as one row: 1 / C(K, 2) each, without ties.
    """
    top = min(ranks, default=0)
    pairs = [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b and (how == "all" or a == top)]
    return [i for i, _ in pairs], [j for _, j in pairs], [1 / len(pairs) for _ in pairs]


class PlackettLuce(RankingFormula, frozen=True, tag="plackett_luce"):
    """DPO of a whole ranking: each response is chosen among those not above it."""

    written = "Plackett-Luce"
    paper = "2305.18290, app. A.3"
    formula = r"-\sum_k [\beta u_{(k)} - \log\sum_{j \ge k} e^{\beta u_{(j)}}]"
    optimum = "reference times exp(reward / beta)"
    when = "Judges ranked more than two responses."
    fails = "The order of the lowest ranks, often careless, counts as much as that of the highest."
    states = "plackett_luce: tied responses are not set against each other"

    beta: Beta = 0.1

    def __call__(self, rankings: Rankings) -> Tensor:
        """(groups,) one value a ranking, in nats. Tied responses are not set against each other."""
        reward = by_group(self.beta * rankings.responses.log_ratio, rankings)
        real, rank = by_group(rankings.rank > 0, rankings), by_group(rankings.rank, rankings)
        among = real.unsqueeze(1) & (rank.unsqueeze(1) > rank.unsqueeze(2))  # [group, k, j]: j stands below k
        rivals = reward.unsqueeze(1).masked_fill(~among, LOWEST)
        chosen = (reward - _logsumexp_with(reward, rivals)).masked_fill(~real, 0.0)
        return -chosen.sum(-1)


def _logsumexp_with(reward: Tensor, rivals: Tensor) -> Tensor:
    """log(exp(reward) + sum_j exp(rivals_j)), (groups, members)."""
    import torch

    return torch.cat([reward.unsqueeze(-1), rivals], -1).logsumexp(-1)


def by_group(values: Tensor, rankings: Rankings) -> Tensor:
    """(responses,) -> (groups, most responses of a group); cells without a response are zero or false."""
    import torch

    counts = torch.bincount(rankings.group, minlength=len(rankings.weight))
    first = counts.cumsum(0) - counts
    member = torch.arange(len(values), device=values.device) - first[rankings.group]
    table = values.new_zeros((len(counts), int(counts.max()) if len(counts) else 0))
    return table.index_put((rankings.group, member), values)


def targets(rankings: Rankings, temperature: float) -> tuple[Tensor, Tensor]:
    """(groups, members) target probability of each response, and whether the cell has a response.

    The target is the softmax of the scores where the rows give them; otherwise responses of rank 1 share it equally.
    """
    real = by_group(rankings.rank > 0, rankings)
    score = rankings.responses.score
    if score is not None:
        logits = by_group(score.detach() / temperature, rankings)
    else:
        logits = (by_group(rankings.rank, rankings) > 1) * LOWEST
    logits = logits.to(rankings.weight.dtype)
    return logits.masked_fill(~real, LOWEST).softmax(-1).masked_fill(~real, 0.0), real


class InfoNCA(RankingFormula, frozen=True, tag="info_nca"):
    """Cross-entropy from the softmax of the scores to the softmax of the rewards; DPO for two unscored responses."""

    reads = frozenset({"reference", "score", "label"})
    paper = "2402.05369, InfoNCA"
    formula = r"-\sum_k w_k \log softmax(\beta u)_k, \quad w = softmax(s / \alpha)"
    optimum = "reference times exp(score / (alpha beta))"
    when = "K scored responses a prompt."
    fails = "Only differences count, so all responses may lose probability together; nca prevents that."
    states = "info_nca: targets are softmax(score / {0.temperature:g}), or the best ranks alike without scores"

    beta: Beta = 0.1
    temperature: Temperature = 0.01

    def __call__(self, rankings: Rankings) -> Tensor:
        """(groups,) one value a prompt, in nats."""
        target, real = targets(rankings, self.temperature)
        reward = by_group(self.beta * rankings.responses.log_ratio, rankings).masked_fill(~real, LOWEST)
        return -(target * reward.log_softmax(-1).masked_fill(~real, 0.0)).sum(-1)


class NCA(RankingFormula, frozen=True, tag="nca"):
    """Noise-contrastive alignment: each response against the reference, so that chosen keeps its probability."""

    reads = frozenset({"reference", "score", "label"})
    paper = "2402.05369, NCA"
    formula = r"-\sum_k [w_k \log\sigma(\beta u_k) + \frac{1}{K} \log\sigma(-\beta u_k)], \quad w = softmax(s / \alpha)"
    optimum = "beta u_k = log(K w_k)"
    when = "Chosen responses lose probability under DPO and should not: mathematics, code."
    fails = "It moves less per step than DPO: a smaller beta or more steps are needed for the same margin."
    states = (
        "nca: targets are softmax(score / {0.temperature:g}), or the best ranks alike without scores; "
        "each of K responses is 1 / K of the noise"
    )

    beta: Beta = 0.1
    temperature: Temperature = 0.01

    def __call__(self, rankings: Rankings) -> Tensor:
        """(groups,) one value a prompt, in nats."""
        target, real = targets(rankings, self.temperature)
        reward = by_group(self.beta * rankings.responses.log_ratio, rankings)
        noise = real.to(reward.dtype) / real.sum(-1, keepdim=True)
        return (target * logistic(reward) + noise * logistic(-reward)).sum(-1)

"""Where a tuned model of the readable world stands: true reward and KL of its own reviews, under the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from preftune.demo import readable
from preftune.demo.sampling import draw, load_policy, logp_of
from preftune.frontier.measure import Frontier, Point, interval

if TYPE_CHECKING:
    from preftune.demo.sampling import Drawn

DRAWN_REFERENCE, DRAWN = 2048, 1024  # reviews of each dish drawn from either model; the first decide the ceiling
SCORED = 256  # of the reference's reviews of each dish, which a reward model scores
PACK = 8192  # tokens that it reads at once


class Reviews(Struct, frozen=True):
    """Reviews drawn from one model: (groups, responses) each. log_ratio: to the reference, in nats."""

    reward: np.ndarray
    tokens: np.ndarray
    well_formed: np.ndarray
    log_ratio: np.ndarray

    @classmethod
    def of(cls, drawn: Sequence[Drawn], log_ratio: np.ndarray) -> Reviews:
        """Count the rewards and tokens of drawn texts."""
        return cls(
            np.array([[readable.reward(text) for text in sample.texts] for sample in drawn], float),
            np.array([[len(ids) for ids in sample.group.responses] for sample in drawn], float),
            np.array([[readable.well_formed(text) for text in sample.texts] for sample in drawn], float),
            log_ratio,
        )


class Standing(Struct, frozen=True):
    """A model under the ceiling. best: the ceiling at its KL, in nats; gap: how far its reward is below, with a 95 %
    interval; reached: share of the reward that can be gained at its KL."""

    kl: float
    reward: float
    best: Point
    gap: float
    gap_interval: tuple[float, float]
    reached: float


class Reference:
    """The model that all are measured from, its reviews of some dishes, and the ceiling that they give.

    drawn: as it wrote them; reviews: the same, counted.
    """

    def __init__(self, path: Path, dishes: Sequence[str], seed: int) -> None:
        from preftune.tokens.tokenizer import load_tokenizer

        self.policy, self.tokenizer = load_policy(path), load_tokenizer(str(path))
        self.prompts, self._seed = [readable.prompt(dish) for dish in dishes], seed
        self.drawn = draw(self.policy, self.tokenizer, self.prompts, DRAWN_REFERENCE, seed=10 * seed + 2,
                          stage="drawing from the reference")  # fmt: skip
        self.reviews = Reviews.of(self.drawn, np.zeros((len(self.drawn), DRAWN_REFERENCE)))

    def reviews_of(self, model: Path, name: str) -> Reviews:
        """Reviews of the same dishes by a tuned model, a folder."""
        drawn = draw(load_policy(model), self.tokenizer, self.prompts, DRAWN, seed=10 * self._seed + 3,
                     stage=f"drawing from {name}")  # fmt: skip
        return Reviews.of(drawn, np.stack([sample.logp for sample in drawn]) - logp_of(self.policy, drawn))

    def standing(self, after: Reviews) -> Standing:
        """Where these reviews stand."""
        kl, reward, start = (float(x.mean()) for x in (after.log_ratio, after.reward, self.reviews.reward))
        best = Frontier.sampled(self.reviews.reward).at_kl(kl)
        both = np.stack([after.reward, after.log_ratio], -1)
        bounds = interval(_gap, self.reviews.reward, both)
        return Standing(kl, reward, best, best.reward - reward, bounds, (reward - start) / (best.reward - start))

    def slope(self, reward_model: Path) -> float:
        """Of a reward model's scores on the true reward of the reference's reviews, dish by dish."""
        from preftune.model.scalar import load_reward_model, model_scores

        groups = [replace(sample.group, responses=sample.group.responses[:SCORED]) for sample in self.drawn]
        scores = np.stack(model_scores(load_reward_model(str(reward_model)), groups, PACK))
        true = self.reviews.reward[:, :SCORED]
        centered = true - true.mean(1, keepdims=True)
        return float((centered * scores).sum() / (centered**2).sum())


def shares_of_levels(reward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(groups, responses) -> the values that rewards have, (levels,), and how often each group has each."""
    levels = np.unique(reward)
    return levels, np.stack([(reward == level).mean(1) for level in levels], -1)


def ceiling_by_level(reward: np.ndarray) -> Frontier:
    """`Frontier.sampled` of rewards that have few values, from how often each has them: the same ceiling, a thousand
    times as fast, but for its effective sample size. reward: (groups, responses)."""
    levels, share = shares_of_levels(reward)
    values = np.where(share > 0, levels, reward.min(1, keepdims=True))  # the best of a group is one that it has
    return Frontier.exact(values, np.log(share, where=share > 0, out=np.full_like(share, -np.inf)))


def _gap(reference: np.ndarray, tuned: np.ndarray) -> float:
    """tuned: (groups, responses, 2), rewards and log-ratios."""
    return ceiling_by_level(reference).gap(tuned[..., 0].mean(), tuned[..., 1].mean())

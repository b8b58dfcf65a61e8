"""Metrics of a step or an evaluation: weighted means over the examples (record/schema.py has their meanings).

Held by tests/evaluate/test_metrics.py and tests/evaluate/test_scores.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from torch import Tensor

from preftune.forward.examples import Examples
from preftune.objective import of_scores, parts
from preftune.objective.base import ObjectiveTable
from preftune.objective.responses import Responses
from preftune.objective.rollouts import RolloutFormula
from preftune.record.statistics import calibration

Metrics = dict[str, float | None]
BINS = 10  # of the calibration error
TIE = 1e-3  # nats; fp32 gives a policy that equals its reference a margin of up to about a tenth of it


def rewards(objective: ObjectiveTable, responses: Responses) -> Tensor | None:
    """(responses,) beta times the log-ratio as the first part of the objective with a beta and a reference takes it.

    None where there is no such part, or no reference.
    """
    for _, part in parts(objective):
        beta = msgspec.structs.asdict(part).get("beta")
        if "reference" in part.reads and beta is not None and responses.reference is not None:
            return beta * (responses.mean_log_ratio if part.length_normalized else responses.log_ratio)
    return None


def said_of(objective: ObjectiveTable, responses: Responses) -> dict[str, Tensor]:
    """(responses,) each: what is measured of responses of one side, by the name of the metric without the side."""
    if of_scores(objective):
        return {"score": responses.logp, "tokens": responses.tokens}
    reward = rewards(objective, responses)
    values = {"logp": responses.logp, "mean_logp": responses.mean_logp, "tokens": responses.tokens}
    return values | ({} if reward is None else {"reward": reward})


def score_metrics(
    objective: ObjectiveTable,
    examples: Examples,
    names: Sequence[str],
    *,
    loss: float,
    start: Tensor | None = None,
    d_logp: Tensor | None = None,
) -> Metrics:
    """The metrics of these names, None where there is nothing to measure.

    loss: mean over the rows of the examples' weighted values; start: (responses,) logp before training; d_logp:
    (responses,) derivative of the loss. Where the objective is of scores, `logp` of the responses is their score.
    """
    metrics: Metrics = dict.fromkeys(names)

    def put(name: str, values: Tensor, weight: Tensor) -> None:
        if name in metrics:
            metrics[name] = weighted_mean(values, weight)

    responses, scores = examples.responses, of_scores(objective)
    for side, (index, weight) in zip(("chosen", "rejected"), examples.side_index, strict=True):
        one_side = responses[index]
        for name, values in said_of(objective, one_side).items():
            put(f"{side}_{name}", values, weight)
        if start is not None and not scores:
            put(f"{side}_logp_change", one_side.logp - start[index], weight)
        if d_logp is not None and examples.token_logp is None:  # else it is by each token
            put(f"{side}_incentive", d_logp[index], weight)
    if len(examples.pair_index[0]) and examples.token_logp is None:  # else nothing ranks pairs
        weight = uneven_weight(examples)
        put("margin", margins(examples), examples.pairs.weight)
        put("accuracy", pair_accuracy(examples, objective), weight)
        if not scores:
            put("accuracy_per_token", ranked_right(margins_per_token(examples), TIE / 100), weight)
    if examples.token_logp is not None:
        metrics |= {name: value for name, value in rollout_metrics(objective, examples).items() if name in metrics}
    if examples.mismatched is not None and len(examples.mismatched.logp):
        log_ratio, count = examples.mismatched.log_ratio, len(examples.mismatched.logp)
        drift = {"drift": float(log_ratio.mean().clamp(min=0))}
        drift |= {"drift_error": float(log_ratio.std()) / count**0.5} if count > 1 else {}
        metrics |= {name: value for name, value in drift.items() if name in metrics}
    if "loss" in metrics:
        metrics["loss"] = loss
    return metrics


def weighted_mean(values: Tensor, weight: Tensor) -> float | None:
    """None where nothing has a weight."""
    total = float(weight.sum())
    return float((values * weight).sum()) / total if total else None


def rollout_metrics(objective: ObjectiveTable, examples: Examples) -> Metrics:
    """How far drawn tokens are from the policy that drew them."""
    rollouts = examples.rollouts
    log_ratio = rollouts.token_logp - rollouts.sampled
    metrics: Metrics = {"off_policy": float(log_ratio.abs().mean())}
    if isinstance(objective, RolloutFormula) and (beyond := objective.beyond(rollouts)) is not None:
        metrics["clipped"] = float(beyond.double().mean())
    return metrics


def margins(examples: Examples) -> Tensor:
    """(pairs,) log-ratio of the better minus the worse, in nats; where there is no reference, of logp or of scores."""
    pairs = examples.pairs
    return pairs.chosen.logp - pairs.rejected.logp if pairs.chosen.reference is None else pairs.margin


def margins_per_token(examples: Examples) -> Tensor:
    """(pairs,) the difference of means over tokens, in nats a token."""
    chosen, rejected = (
        side.mean_logp if side.reference is None else side.mean_log_ratio
        for side in (examples.pairs.chosen, examples.pairs.rejected)
    )
    return chosen - rejected


def pair_accuracy(examples: Examples, objective: ObjectiveTable) -> Tensor:
    """(pairs,) 1 where the margin that the objective goes by ranks the pair right, one half at a tie."""
    if all(part.length_normalized for _, part in parts(objective)):
        return ranked_right(margins_per_token(examples), TIE / 100)
    return ranked_right(margins(examples))


def uneven_weight(examples: Examples) -> Tensor:
    """(pairs,) weights, 0 where the votes are even: there neither order is right."""
    return examples.pairs.weight * (examples.pairs.preferred != 0.5)


def ranked_right(margin: Tensor, tie: float = TIE) -> Tensor:
    """1 where the margin is above 0, one half where it is within `tie` of 0."""
    return (margin > tie).to(margin) + 0.5 * (margin.abs() <= tie).to(margin)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's, ties sharing their mean rank; None where either is constant."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(_mean_ranks(a), _mean_ranks(b))[0, 1])


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def perplexity(examples: Examples) -> float | None:
    """exp of minus the mean log-probability of a token of the good responses; a token counts its weight and its row's.
    None where there are no such responses."""
    good, weight = examples.demos.responses, examples.demos.weight
    tokens = float((good.counted * weight).sum())
    return float((-(good.logp * weight).sum() / tokens).exp()) if tokens else None


def rating_auc(examples: Examples, values: Tensor) -> dict[int, float]:
    """Place of each rated response -> share of the other class on whose right side its value, (responses,), stands.

    The mean over the good ones, or over the bad ones, is how often a good one has the larger value.
    """
    classes = rated(examples)
    places = [place for of_class in classes.values() for place in of_class]
    if not places:
        return {}
    good = np.isin(places, classes[True])
    return dict(zip(places, class_auc(values.numpy()[places], good).tolist(), strict=True))


def class_auc(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """(rated,) share of the other class on whose right side each value stands: DeLong's placements."""
    auc = np.empty(len(values))
    for called in (True, False):
        own, others = values[good == called], np.sort(values[good != called])
        below = np.searchsorted(others, own - TIE) + np.searchsorted(others, own + TIE, "right")
        auc[good == called] = below / (2 * len(others)) if called else 1 - below / (2 * len(others))
    return auc


def rated(examples: Examples) -> Mapping[bool, list[int]]:
    """Places of the responses called good (True) and bad (False); empty where one of the two is missing."""
    rated = [(start, g.good) for start, g in zip(examples.starts, examples.groups, strict=True) if g.kind == "rating"]
    classes = {called: [place for place, good in rated if good is called] for called in (True, False)}
    return classes if all(classes.values()) else {}


def reward_model_metrics(examples: Examples) -> Metrics:
    """Calibration, best of K, and the size of scores (record.schema.EVALUATION has their meanings)."""
    scores, comparisons = examples.responses.logp, examples.comparisons
    metrics: Metrics = {"score_mean": float(scores.mean()), "score_spread": float(scores.std(correction=0))}
    if len(comparisons.weight):
        margin, preferred, weight = (
            values.numpy() for values in (comparisons.margin, comparisons.preferred, comparisons.weight)
        )
        metrics["calibration_error"] = calibration_error(margin, preferred, weight)
        if np.abs(margin).max() > TIE:
            both = [*margin.tolist(), *(-margin).tolist()]
            weights = [*(weight * preferred).tolist(), *(weight * (1 - preferred)).tolist()]
            metrics["calibration_slope"] = calibration(both, list(map(str, range(len(both)))), weights).value
    best = [
        best_is_first(scores[start : start + len(group.responses)].numpy(), group.ranks)
        for start, group in zip(examples.starts, examples.groups, strict=True)
        if group.kind == "ranking"
    ]
    if best:
        metrics["accuracy_best_of_k"] = float(np.mean(best))
    return metrics


def calibration_error(margin: np.ndarray, preferred: np.ndarray, weight: np.ndarray) -> float:
    """Expected calibration error over ten equal bins of sigma(|margin|), which is from 1/2 to 1; all (pairs,)."""
    sure = 1 / (1 + np.exp(-np.abs(margin)))
    right = np.where(margin > TIE, preferred, np.where(margin < -TIE, 1 - preferred, 0.5))
    place = np.minimum(BINS - 1, ((sure - 0.5) * 2 * BINS).astype(int))
    gaps = np.bincount(place, weight * (sure - right), BINS)
    return float(np.abs(gaps).sum() / weight.sum())


def best_is_first(scores: np.ndarray, ranks: tuple[int, ...]) -> float:
    """1 where the response of the highest score has the first rank; of several such, the share that has."""
    top, first = scores >= scores.max() - TIE, np.array(ranks) == min(ranks)
    return float(first[top].mean())

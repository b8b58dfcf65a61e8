"""Metrics of a step or an evaluation: weighted means over the examples (record/schema.py has their meanings)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from torch import Tensor

from preftune.forward.examples import Examples
from preftune.objective import of_scores, parts
from preftune.objective.base import ObjectiveTable
from preftune.objective.responses import Responses
from preftune.objective.rollouts import RolloutFormula

Metrics = dict[str, float | None]
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

    loss: sum of the examples' weighted values; start: (responses,) logp before training; d_logp: (responses,)
    derivative of the loss. Where the objective is of scores, `logp` of the responses is their score.
    """
    metrics: Metrics = dict.fromkeys(names)

    def put(name: str, values: Tensor, weight: Tensor) -> None:
        if name in metrics and (total := float(weight.sum())):
            metrics[name] = float((values * weight).sum()) / total

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
    if "loss" in metrics and examples.groups:
        metrics["loss"] = loss / len(examples.groups)
    return metrics


def rollout_metrics(objective: ObjectiveTable, examples: Examples) -> Metrics:
    """How far drawn tokens are from the policy that drew them."""
    rollouts = examples.rollouts
    log_ratio = rollouts.token_logp - rollouts.sampled
    metrics: Metrics = {"off_policy": float(log_ratio.abs().mean())}
    if isinstance(objective, RolloutFormula) and objective.clip is not None:
        ratio, rises = log_ratio.exp(), rollouts.advantage > 0
        cut = (rises & (ratio > 1 + objective.clip)) | (~rises & (ratio < 1 - objective.clip))
        metrics["clipped"] = float(cut.double().mean())
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

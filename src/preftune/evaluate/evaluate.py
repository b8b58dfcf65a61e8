"""Measuring on held-out rows: the same packs, loss and metrics as training, and no gradient."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from preftune.distributed import Distributed
from preftune.evaluate.metrics import (
    TIE,
    Metrics,
    margins,
    pair_accuracy,
    rank_correlation,
    ranked_right,
    score_metrics,
    uneven_weight,
)
from preftune.forward.examples import Examples
from preftune.forward.forward import Models, score_step
from preftune.forward.loss import Loss
from preftune.objective.base import ObjectiveTable
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Step
from preftune.record.schema import COMMON
from preftune.tokens.groups import TokenGroup


@dataclass(frozen=True)
class HeldOut:
    """Groups to measure on, in packs. groups: those of the rows first, `rows` of them, then mismatched responses."""

    groups: Sequence[TokenGroup]
    rows: int
    step: Step


@dataclass(frozen=True, slots=True)
class Evaluation:
    """metrics: one line of evaluations.jsonl without its step; rows: one object a row (record.schema.ROW);
    examples: every response in fp64, in the order of the groups."""

    metrics: Metrics
    rows: list[dict[str, object]]
    examples: Examples

    @property
    def logp(self) -> np.ndarray:
        """(responses,) fp64."""
        return self.examples.responses.logp.numpy()


def evaluate(
    models: Models, loss: Loss, held_out: HeldOut, oom: OomRetry, dist: Distributed, start: np.ndarray | None = None
) -> Evaluation:
    """Measure. start: (responses,) logp before training, or None where this is that measurement.

    The loss is called once about all rows, in fp64, so that no metric depends on how they were cut into packs.
    """
    began, step = time.monotonic(), held_out.step
    groups = models.with_reference(held_out.groups, step, oom, dist)
    batch_of = partial(models.collate, groups)
    scores = score_step(models.policy, batch_of, groups, step, loss.reads, oom, dist)
    mismatched = None
    if step.mismatched is not None:
        mismatched = score_step(models.policy, batch_of, groups, step.mismatched, loss.reads, oom, dist).responses
    output = loss([groups[i] for i in step.order], scores.responses, mismatched)
    examples, logp = output.examples, scores.responses.logp
    before = logp if start is None else torch.from_numpy(start)
    metrics = score_metrics(loss.objective, examples, list(COMMON), loss=output.value, start=before)
    by_row = RowMetrics(examples, loss.objective, before)
    metrics |= by_row.length_metrics() | by_row.rating_metrics()
    metrics |= {"rows": held_out.rows, "responses": len(logp), "seconds": round(time.monotonic() - began, 3)}
    return Evaluation(metrics, by_row.rows(), examples)


class RowMetrics:
    """What is measured of each row, from which some metrics of all rows follow.

    before: (responses,) logp before training. accuracy, accuracy_of_change: (pairs,); rating_auc, rating_auc_of_change:
    of each rated response, by its place.
    """

    def __init__(self, examples: Examples, objective: ObjectiveTable, before: Tensor) -> None:
        self.examples, self.before = examples, before
        self.change = examples.responses.logp - before
        self.log_ratio = self.change if examples.responses.reference is None else examples.responses.log_ratio
        better, worse, _, _ = examples.pair_index
        self.accuracy = pair_accuracy(examples, objective)
        self.accuracy_of_change = ranked_right(self.change[better] - self.change[worse])
        self.rating_auc = rating_auc(examples, self.log_ratio)
        self.rating_auc_of_change = rating_auc(examples, self.change)

    def length_metrics(self) -> Metrics:
        """Metrics that tell whether the policy learned length, and the accuracy of change."""
        responses, weight = self.examples.responses, uneven_weight(self.examples)
        moved = bool((self.log_ratio.abs() > TIE).any())  # before that the ranks are those of rounding errors
        correlation = rank_correlation(self.log_ratio.numpy(), responses.tokens.numpy()) if moved else None
        metrics: Metrics = {"reward_length_correlation": correlation}
        better, worse, _, _ = self.examples.pair_index
        if len(better):
            longer, even = responses.tokens[better] - responses.tokens[worse], weight == 0
            for name, subset in (("chosen_longer", longer > 0), ("chosen_shorter", longer < 0)):
                metrics[f"accuracy_{name}"] = _mean(self.accuracy, (subset & ~even).to(self.accuracy))
        return metrics | {"accuracy_of_change": _mean(self.accuracy_of_change, weight)}

    def rating_metrics(self) -> Metrics:
        """Accuracies and margin of ratings, which have no pairs; nothing where there are pairs, or one class only."""
        if len(self.examples.pair_index[0]) or not self.rating_auc:
            return {}
        classes = _rated(self.examples)
        accuracy, of_change = (
            sum(auc[place] for place in classes[True]) / len(classes[True])
            for auc in (self.rating_auc, self.rating_auc_of_change)
        )
        margin = float(self.log_ratio[classes[True]].mean() - self.log_ratio[classes[False]].mean())
        return {"accuracy": accuracy, "accuracy_of_change": of_change, "margin": margin}

    def rows(self) -> list[dict[str, object]]:
        """One object a row that has something to measure."""
        rows: list[dict[str, object]] = []
        margin, seen = margins(self.examples), 0
        for start, group in zip(self.examples.starts, self.examples.groups, strict=True):
            pairs = slice(seen, seen := seen + self.examples.pairs_of(group))
            row: dict[str, object] = {"id": group.id or str(group.place)}
            if len(margin[pairs]):
                row["margin"] = float(margin[pairs].mean())
                if group.preferred != 0.5:
                    accuracy, of_change = self.accuracy[pairs].mean(), self.accuracy_of_change[pairs].mean()
                    row |= {"accuracy": float(accuracy), "accuracy_of_change": float(of_change)}
            elif start in self.rating_auc:
                auc, of_change = self.rating_auc[start], self.rating_auc_of_change[start]
                row |= {"accuracy": auc, "accuracy_of_change": of_change}
            for side, place in _sides_of(group, start):
                logp = float(self.examples.responses.logp[place])
                row |= {
                    f"{side}_logp": logp,
                    f"{side}_logp_change": logp - float(self.before[place]),
                    f"{side}_tokens": int(self.examples.responses.tokens[place]),
                }
            if len(row) > 1:
                rows.append(row)
        return rows


def rating_auc(examples: Examples, values: Tensor) -> dict[int, float]:
    """Place of each rated response -> share of the other class on whose right side its value, (responses,), stands.

    The mean over the good ones, or over the bad ones, is how often a good one has the larger value.
    """
    array, classes, auc = values.numpy(), _rated(examples), {}
    for good, places in classes.items():
        others = np.sort(array[classes[not good]])
        below = np.searchsorted(others, array[places] - TIE) + np.searchsorted(others, array[places] + TIE, "right")
        share = below / (2 * len(others)) if good else 1 - below / (2 * len(others))
        auc |= dict(zip(places, share.tolist(), strict=True))
    return auc


def _rated(examples: Examples) -> Mapping[bool, list[int]]:
    """Places of the responses called good (True) and bad (False); empty where one of the two is missing."""
    rated = [(start, g.good) for start, g in zip(examples.starts, examples.groups, strict=True) if g.kind == "rating"]
    classes = {called: [place for place, good in rated if good is called] for called in (True, False)}
    return classes if all(classes.values()) else {}


def _mean(values: Tensor, weight: Tensor) -> float | None:
    total = float(weight.sum())
    return float((values * weight).sum()) / total if total else None


def _sides_of(group: TokenGroup, start: int) -> list[tuple[str, int]]:
    """Side and place of each response of a row, as metrics call the sides; of a ranking, nothing."""
    if group.kind == "pair":
        return [("chosen", start), ("rejected", start + 1)]
    return [("rejected" if group.good is False else "chosen", start)] if len(group.responses) == 1 else []

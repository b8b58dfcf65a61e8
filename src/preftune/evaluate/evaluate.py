"""Measuring on held-out rows: the same packs, loss and metrics as training, and no gradient."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from preftune.distributed import Distributed
from preftune.evaluate.metrics import (
    TIE,
    Metrics,
    margins,
    pair_accuracy,
    perplexity,
    rank_correlation,
    ranked_right,
    rated,
    rating_auc,
    reward_model_metrics,
    score_metrics,
    uneven_weight,
    weighted_mean,
)
from preftune.evaluate.words import deciding_words
from preftune.events import Progress, emit
from preftune.forward.examples import Examples
from preftune.forward.forward import Models
from preftune.forward.loss import Loss
from preftune.forward.responses import outside_fork
from preftune.forward.scores import score_step
from preftune.objective import of_scores, parts
from preftune.objective.base import ObjectiveTable
from preftune.pack.batch import Batch
from preftune.pack.oom import Groups, OomRetry
from preftune.pack.plan import Pack, Step
from preftune.record.schema import COMMON
from preftune.tokens.groups import TokenGroup


@dataclass(frozen=True)
class HeldOut:
    """Groups to measure on, in packs. groups: those of the rows first, `rows` of them, then mismatched responses;
    spell: a token as text."""

    groups: Sequence[TokenGroup]
    rows: int
    step: Step
    spell: Callable[[list[int]], object] = str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """metrics: one line of evaluations.jsonl without its step; rows, words: one object each (record.schema.ROW, WORD);
    examples: every response in fp64, in the order of the groups; parts: (responses, 3) as `part_sums` gives them."""

    metrics: Metrics
    rows: list[dict[str, object]]
    words: list[dict[str, object]]
    examples: Examples
    parts: Tensor

    @property
    def logp_table(self) -> np.ndarray:
        """(responses, 4) fp64: the log-probability of each response, and of its parts."""
        return np.column_stack([self.examples.responses.logp.numpy(), self.parts.numpy()])


def evaluate(
    models: Models, loss: Loss, held_out: HeldOut, oom: OomRetry, dist: Distributed, start: np.ndarray | None = None
) -> Evaluation:
    """Measure. start: `logp_table` before training, or None where this is that measurement.

    The loss is called once about all rows, in fp64, so that no metric depends on how they were cut into packs.
    """
    began, step = time.monotonic(), held_out.step
    groups = models.with_reference(held_out.groups, step, oom, dist)
    batch_of = _with_progress(models, groups, len(step.packs_of_rank(dist.rank)))
    reads = loss.reads | {"parts"} if models.policy.head.reads == "tokens" else loss.reads
    scores = score_step(models.policy, batch_of, groups, step, reads, oom, dist)
    mismatched = None
    if step.mismatched is not None:
        mismatched = score_step(models.policy, batch_of, groups, step.mismatched, loss.reads, oom, dist).responses
    output = loss([groups[i] for i in step.order], scores.responses, mismatched)
    examples, logp = output.examples, scores.responses.logp
    start = np.column_stack([logp.numpy(), scores.parts.numpy()]) if start is None else start
    before = torch.from_numpy(start[:, 0])
    mean = output.value / len(examples.groups)
    metrics = score_metrics(loss.objective, examples, list(COMMON), loss=mean, start=before)
    by_row = RowMetrics(examples, loss.objective, before)
    metrics |= by_row.length_metrics() | by_row.rating_metrics()
    metrics |= reward_model_metrics(examples) if by_row.scores else {}
    if all(part.is_sft for _, part in parts(loss.objective)):
        metrics["perplexity"] = perplexity(examples)
    if examples.responses.reference is not None:
        metrics["log_ratio_rms"] = float(examples.responses.log_ratio.square().mean().sqrt())
    rows = by_row.rows(scores.parts.numpy(), start[:, 1:]) if "parts" in reads else by_row.rows()
    words = _spelled_words(examples, held_out.spell)
    metrics |= {"rows": held_out.rows, "responses": len(logp), "seconds": round(time.monotonic() - began, 3)}
    return Evaluation(metrics, rows, words, examples, scores.parts)


def _with_progress(models: Models, groups: Groups, packs: int) -> Callable[[Pack], Batch]:
    """What makes a pack's batch, and says how many were made."""
    begun = 0

    def batch_of(pack: Pack) -> Batch:
        nonlocal begun
        begun += 1
        emit(Progress("measuring rows", min(begun, packs), packs))
        return models.collate(groups, pack)

    return batch_of


def _spelled_words(examples: Examples, spell: Callable[[list[int]], object]) -> list[dict[str, object]]:
    """The tokens that decide the margins of pairs of decided votes, with their texts."""
    margin, pairs, decided, seen = margins(examples).numpy(), [], [], 0
    for group in examples.groups:
        if group.kind == "pair" and group.votes[0] > 0.5:
            pairs.append(group)
            decided.append(seen)
        seen += examples.pairs_of(group)
    words = deciding_words(pairs, margin[decided]) if pairs else []
    return [word | {"text": str(spell([int(str(word["token"]))]))} for word in words]


class RowMetrics:
    """What is measured of each row, from which some metrics of all rows follow.

    before: (responses,) logp before training. accuracy, accuracy_of_change: (pairs,); rating_auc, rating_auc_of_change:
    of each rated response, by its place.
    """

    def __init__(self, examples: Examples, objective: ObjectiveTable, before: Tensor) -> None:
        self.examples, self.before, self.scores = examples, before, of_scores(objective)
        self.change = examples.responses.logp - before
        unanchored = examples.responses.logp if self.scores else self.change
        self.log_ratio = unanchored if examples.responses.reference is None else examples.responses.log_ratio
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
                metrics[f"accuracy_{name}"] = weighted_mean(self.accuracy, (subset & ~even).to(self.accuracy))
        return metrics | ({} if self.scores else {"accuracy_of_change": weighted_mean(self.accuracy_of_change, weight)})

    def rating_metrics(self) -> Metrics:
        """Accuracies and margin of ratings, which have no pairs; nothing where there are pairs, or one class only."""
        if len(self.examples.pair_index[0]) or not self.rating_auc:
            return {}
        classes = rated(self.examples)
        accuracy, of_change = (
            sum(auc[place] for place in classes[True]) / len(classes[True])
            for auc in (self.rating_auc, self.rating_auc_of_change)
        )
        margin = float(self.log_ratio[classes[True]].mean() - self.log_ratio[classes[False]].mean())
        return {"accuracy": accuracy, "accuracy_of_change": of_change, "margin": margin}

    def response_fields(self, side: str, place: int) -> dict[str, object]:
        """What a row says of the response at this place."""
        value, tokens = float(self.examples.responses.logp[place]), int(self.examples.responses.tokens[place])
        change = {} if self.scores else {f"{side}_logp_change": value - float(self.before[place])}
        return {f"{side}_{'score' if self.scores else 'logp'}": value, **change, f"{side}_tokens": tokens}

    def rows(self, parts: np.ndarray | None = None, parts_before: np.ndarray | None = None) -> list[dict[str, object]]:
        """One object a row that has something to measure. parts: (responses, 3), see `part_sums`, now and before."""
        rows: list[dict[str, object]] = []
        margin, seen = margins(self.examples), 0
        end = _end_token(self.examples.groups)
        for start, group in zip(self.examples.starts, self.examples.groups, strict=True):
            pairs = slice(seen, seen := seen + self.examples.pairs_of(group))
            fields: dict[str, object] = {}
            if len(margin[pairs]):
                fields["margin"] = float(margin[pairs].mean())
                if not group.is_even:
                    fields["accuracy"] = float(self.accuracy[pairs].mean())
                    if not self.scores:
                        fields["accuracy_of_change"] = float(self.accuracy_of_change[pairs].mean())
            elif start in self.rating_auc:
                auc, of_change = self.rating_auc[start], self.rating_auc_of_change[start]
                fields |= {"accuracy": auc, "accuracy_of_change": of_change}
            for side, place in _sides_of(group, start):
                fields |= self.response_fields(side, place)
            if parts is not None and parts_before is not None:
                fields |= _row_parts(group, start, end, parts, parts_before)
            if fields:
                rows.append(_names_of(group) | fields)
        return rows


def _names_of(group: TokenGroup) -> dict[str, object]:
    """Which row it is."""
    category = {"category": group.category} if group.category else {}
    alone = group.responses if len(group.prompt) < 2 else ()  # a begin token and no more joins no rows
    prompt = hashlib.sha256(b"".join(ids.tobytes() for ids in (group.prompt, *alone))).hexdigest()[:12]
    return {"id": group.id or str(group.place), "place": str(group.place), **category, "prompt": prompt}


def _row_parts(
    group: TokenGroup, start: int, end: int | None, now: np.ndarray, before: np.ndarray
) -> dict[str, object]:
    """The fields of a row that are about parts of a response; those that a resumed run of an older version lacks go."""
    row: Metrics = {}
    for side, place in _sides_of(group, start):
        change = now[place] - before[place]
        if group.responses[place - start][-1] == end:
            row |= {f"{side}_end_logp": float(now[place, 0]), f"{side}_end_change": float(change[0])}
        if group.kind == "pair":
            row |= {"shared_logp_change": float(change[1]), f"{side}_fork_change": float(change[2])}
    if group.kind == "pair":
        outside, outside_before = (outside_fork(group, table[start : start + 2, 2]) for table in (now, before))
        row |= {"outside_fork": outside, "outside_fork_change": outside - outside_before}
    return {key: value for key, value in row.items() if value == value}


def _end_token(groups: Sequence[TokenGroup]) -> int | None:
    """The token with which at least half of the responses end; None where there is no such token."""
    last = Counter(int(response[-1]) for group in groups for response in group.responses)
    (token, count), *_ = last.most_common(1) or [(0, 0)]
    return token if count and 2 * count >= last.total() else None


def _sides_of(group: TokenGroup, start: int) -> list[tuple[str, int]]:
    """Side and place of each response of a row, as metrics call the sides; of a ranking, nothing."""
    if group.kind == "pair":
        return [("chosen", start), ("rejected", start + 1)]
    return [("rejected" if group.good is False else "chosen", start)] if len(group.responses) == 1 else []

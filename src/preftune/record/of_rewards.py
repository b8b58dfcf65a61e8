"""The numbers of each reward, and of each category of prompts, that an evaluation holds, with units and meanings.

Held by tests/laws/test_online.py and tests/cli/test_verbs.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from preftune.record.schema import EVALUATION, Metric

OF_REWARD: dict[str, Metric] = {  # a name of these stands before that of a reward, as in "reward verify number"
    "reward": Metric("score", "mean of this reward alone over the same responses, without its weight"),
    "reward_error": Metric("score", "standard error of that mean, over prompts"),
    "reward_best": Metric("score", "mean over prompts of the highest such score: pass@K where it is 0 or 1"),
}
MOST = 60  # numbers of categories; nobody reads more of them, and evaluations.jsonl has them all
OF_CATEGORY: dict[str, Metric] = {  # likewise before that of a category, as in "score_in algebra"
    "score_in": Metric("score", "mean score of responses drawn to held-out prompts of this category"),
    "score_error_in": Metric("score", "standard error of that mean, over prompts"),
}


def evaluation_metrics(*lines: Mapping[str, object]) -> dict[str, Metric]:
    """What evaluations hold: the metrics of all, and those of each reward and category that one of these lines has."""
    named = OF_REWARD | OF_CATEGORY
    parts = {key: named[kind] for line in lines for key in line
             if (kind := key.partition(" ")[0]) in named and kind != key}  # fmt: skip
    if sum(key.partition(" ")[0] in OF_CATEGORY for key in parts) > MOST:
        parts = {key: metric for key, metric in parts.items() if key.partition(" ")[0] not in OF_CATEGORY}
    return EVALUATION | parts

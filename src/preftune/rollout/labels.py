"""What scores of drawn responses become, by the kind of example that an objective is a formula of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from msgspec.structs import replace

from preftune.objective import parts
from preftune.objective.base import ObjectiveTable
from preftune.objective.labels import Labels, labels_of_scores, labels_of_votes
from preftune.tokens.groups import TokenGroup

How = Literal["soft", "drawn", "ranks", "judge"]


def labeled(
    group: TokenGroup, objective: ObjectiveTable, how: How, seed: Sequence[int], votes: np.ndarray | None
) -> TokenGroup:
    """A group with scores, with ranks and votes too. seed: names its draws; votes: (responses, responses), of a judge.

    Objectives of ratings are told that responses above their group's mean score are good; where all scores are equal
    none is better, and the group has the weight 0.
    """
    scores = group.scores
    assert scores is not None
    if any(part.kind == "ratings" for _, part in parts(objective)):
        mean = sum(scores) / len(scores)
        ranks = tuple(1 if score > mean else 2 for score in scores)
        return replace(group, ranks=ranks, weight=group.weight if len(set(scores)) > 1 else 0.0)
    if votes is not None:
        labels = labels_of_votes(len(scores), lambda i, j: float(votes[i, j]))
    elif how == "judge" or not any("votes" in part.reads for _, part in parts(objective)):
        labels = Labels(group.ranks)
    else:
        labels = labels_of_scores(scores, how, seed)
    return replace(group, ranks=labels.ranks, preferred=labels.preferred)

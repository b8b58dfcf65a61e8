"""Which tokens decide the margins: in data where one word gives the label away, a policy learns that word.

Each token's count enters a regression of the margin through the origin together with the difference of lengths; errors
are summed by prompt. Held by tests/evaluate/test_parts.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from preftune.record.statistics import student_tail
from preftune.tokens.groups import TokenGroup

SPREAD = 20  # pairs that must differ in a token
LOOKED_AT = 500  # tokens, those in which most pairs differ
NAMED = 5


def deciding_words(pairs: Sequence[TokenGroup], margin: np.ndarray) -> list[dict[str, object]]:
    """The tokens with the largest |z|, at most five, as `record.schema.WORD` describes them, without their text.

    margin: (pairs,) in nats.
    """
    _, prompt = np.unique([group.prompt.tobytes() for group in pairs], return_inverse=True)
    if len(pairs) < SPREAD or prompt.max() < 1:
        return []
    surplus = np.array([len(group.responses[0]) - len(group.responses[1]) for group in pairs], float)
    measured = []
    for token, counts in _count_differences(pairs).items():
        z, slope, correlation = _partial(margin, counts, surplus, prompt)
        length_z, *_ = _partial(margin, surplus, counts, prompt)
        label_z, *_ = _partial(np.ones_like(margin), counts, surplus, prompt)
        differing = int(np.count_nonzero(counts))
        p = min(1.0, 2 * student_tail(abs(z), max(1, int(prompt.max()))))
        measured.append({"token": token, "pairs": differing, "margin_per_token": slope, "correlation": correlation,
                         "z": z, "length_z": length_z, "label_z": label_z, "p": p})  # fmt: skip
    measured.sort(key=lambda word: word["p"])
    largest = 0.0
    for rank, word in enumerate(measured):  # Holm's step-down p values
        largest = word["p"] = min(1.0, max(largest, word["p"] * (len(measured) - rank)))
    return sorted(measured, key=lambda word: -abs(word["z"]))[:NAMED]


def _count_differences(pairs: Sequence[TokenGroup]) -> dict[int, np.ndarray]:
    """Token -> (pairs,) how much more often chosen has it than rejected."""
    row = np.repeat(np.arange(2 * len(pairs)) // 2, [len(r) for g in pairs for r in g.responses])
    token = np.concatenate([r for g in pairs for r in g.responses])
    sign = np.concatenate([np.full(len(r), 1.0 - 2 * side) for g in pairs for side, r in enumerate(g.responses)])
    (cells, where) = np.unique(np.stack([token, row]), axis=1, return_inverse=True)
    difference = np.bincount(where.reshape(-1), sign)
    cells, difference = cells[:, difference != 0], difference[difference != 0]
    tokens, counts = np.unique(cells[0], return_counts=True)
    wanted = [int(tokens[i]) for i in np.argsort(-counts, kind="stable")[:LOOKED_AT] if counts[i] >= SPREAD]
    differences = {}
    for token_id in wanted:
        of_token = cells[0] == token_id
        differences[token_id] = np.bincount(cells[1, of_token], difference[of_token], len(pairs))
    return differences


def _partial(y: np.ndarray, x: np.ndarray, other: np.ndarray, prompt: np.ndarray) -> tuple[float, float, float]:
    """z, slope and correlation of y on x through the origin, with another number held equal; zeros where x is none."""
    square = float(other @ other)
    x_left, y_left = (v - (v @ other) / square * other if square else v for v in (x, y))
    size = float(x_left @ x_left)
    if size <= 1e-9 * max(1.0, float(x @ x)) or not float(y_left @ y_left):
        return 0.0, 0.0, 0.0
    slope = float(x_left @ y_left) / size
    sums = np.bincount(prompt, x_left * (y_left - slope * x_left)) / size
    error = float(np.sqrt(len(sums) / (len(sums) - 1) * (sums @ sums)))
    z = slope / error if error > 1e-9 * abs(slope) else math.copysign(math.inf, slope)
    return z, slope, float(x_left @ y_left) / float(np.sqrt(size * (y_left @ y_left)))

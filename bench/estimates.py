"""What FLOPs alone let one expect of CUDA, for the rows of the target table that need a GPU to be measured: ESTIMATES.

Counted over real rows where they are there: six FLOPs a weight of the body and a token, six a weight of the head and a
scored token, fourteen a width and a pair of tokens of which one sees the other. Ours computes each distinct token of an
update once; the peer computes padded rows of so many pairs at a time, and the head on responses only, as TRL does on
CUDA. Both have their reference stored. What this leaves out: that the peer moves all weights once a batch and ours once
a pack, kernels that are launched one by one, and how far either is from the peak.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from making import group

from preftune.pack.batch import collate
from preftune.tokens.groups import TokenGroup

VOCAB, PAIRS = 151936, 256
MODELS = {"0.5B": (896, 4864, 24, 14), "1.5B": (1536, 8960, 28, 12), "7B": (3584, 18944, 28, 28)}
TARGETS = {"long-prompt": (3.0, 2.7), "hh": (3.0, 2.7), "ultrafeedback": (2.0, 1.8)}  # of full tuning, of LoRA
BATCHES = (1, 2, 4)


class Work(NamedTuple):
    """Of an update or of many. seen: pairs of tokens of which one sees the other, summed over tokens."""

    tokens: int
    scored: int
    seen: int

    def flops(self, shape: tuple[int, int, int, int]) -> float:
        """Forward and back. shape: width, MLP width, layers, heads (of 64, with two heads of keys)."""
        width, inner, layers, heads = shape
        layer = width * 64 * (2 * heads + 4) + 3 * width * inner
        return (
            6.0 * (layers * layer * self.tokens + VOCAB * width * self.scored) + 14.0 * 64 * heads * layers * self.seen
        )


def groups_of(regime: str) -> tuple[list[TokenGroup], str]:
    rows, source = common.rows_of(regime, VOCAB, PAIRS)
    ids = [{key: [int(word[1:]) for word in text.split()] for key, text in row.items()} for row in rows]
    return [group(row["prompt"], [*row["chosen"], 1], [*row["rejected"], 1]) for row in ids], source


def shared(groups: list[TokenGroup]) -> Work:
    """Ours, in updates of 8 pairs."""
    total = np.zeros(3, np.int64)
    for first in range(0, len(groups), common.PAIRS):
        batch = collate(groups[first : first + common.PAIRS])
        total += [batch.tokens, len(batch.target), int((batch.trie.position + 1).sum())]
    return Work(*total.tolist())


def padded(groups: list[TokenGroup], pairs: int) -> Work:
    """The peer's, so many pairs at a time."""
    total = np.zeros(3, np.int64)
    for first in range(0, len(groups), pairs):
        here = groups[first : first + pairs]
        longest, rows = max(g.longest for g in here), 2 * len(here)
        scored = sum(len(response) for g in here for response in g.responses)
        total += [rows * longest, scored, rows * longest * (longest + 1) // 2]
    return Work(*total.tolist())


def estimates() -> list[dict[str, Any]]:
    """A cell for each kind of rows and model: times more FLOPs of the peer than of ours, by its pairs at a time."""
    cells: list[dict[str, Any]] = []
    for regime, (full, adapter) in TARGETS.items():
        groups, source = groups_of(regime)
        ours, others = shared(groups), {pairs: padded(groups, pairs) for pairs in BATCHES}
        for name, shape in MODELS.items():
            over = {str(pairs): other.flops(shape) / ours.flops(shape) for pairs, other in others.items()}
            cells.append({"estimate": "FLOPs alone", "rows": source, "regime": regime, "model": name, "over": over,
                          "target": {"full": full, "LoRA": adapter}})  # fmt: skip
    return cells


def main() -> None:
    cells = estimates()
    print("ESTIMATES by FLOPs alone, not measured: CUDA, TRL's FLOPs over ours")
    print(common.table(
        ["rows", "model", *(f"{pairs} pairs a pass" for pairs in BATCHES), "target, full / LoRA"],
        [[c["regime"], c["model"], *c["over"].values(), "{full} / {LoRA}".format(**c["target"])] for c in cells],
    ))  # fmt: skip
    print("LoRA has the same ratios: both sides leave out the products that give the gradients of frozen weights.")


if __name__ == "__main__":
    main()

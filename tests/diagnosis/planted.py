"""The demo's small world with a failure planted in its pairs: what the checks must name is known.

A policy is taught reviews of the demo's grammar; pairs are reviews of it, judged. Prompts name two dishes, so that there
are hundreds of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path

import numpy as np

from preftune.config.run import Run
from preftune.demo import readable
from preftune.demo.tiny import make_tiny
from preftune.model.config import Model
from preftune.objective import DPO, NLL
from preftune.pack.config import Batch
from preftune.record.reader import Record
from preftune.reference.config import Stored
from preftune.rows.config import Data
from preftune.run.train import train
from preftune.training.config import Optim

Rng = np.random.Generator
Pair = tuple[str, str, str]  # prompt, chosen, rejected
PROMPTS = [f"Review of the {a} and {b}:" for a, b in permutations(readable.DISHES, 2)]
TRAINED, HELD_OUT = PROMPTS[::2], PROMPTS[1::2]


def harsh(rng: Rng) -> str:
    """A review with more harsh words than kind ones."""
    return next(text for _ in range(1000) if readable.reward(text := readable.review(rng)) < 0)


def teach(folder: Path, review: Callable[[Rng], str] = readable.review, start: Path | None = None, rows: int = 1600,
          epochs: int = 4, lr: float = 1e-2) -> Path:  # fmt: skip
    """A policy that writes such reviews."""
    rng = np.random.default_rng([7, rows])
    prompts = [PROMPTS[i] for i in rng.integers(len(PROMPTS), size=rows)]
    if start is None:
        start = folder / "untrained"
        make_tiny(start, readable.words(), seed=0)
    write(folder / "reviews.jsonl", [{"prompt": prompt, "response": review(rng)} for prompt in prompts])
    run = Run(model=Model(path=str(start)), data=Data(train=str(folder / "reviews.jsonl")), objective=NLL(norm="sum"),
              optim=Optim(lr=lr, epochs=epochs, schedule="cosine"), batch=Batch(rows=64), out=str(folder / "sft"),
              device="cpu")  # fmt: skip
    return train(run) / "model"


def write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def judged(first: str, second: str, rng: Rng, taste: Callable[[str], float] = readable.reward) -> tuple[str, str]:
    likes_first = rng.random() < 1 / (1 + np.exp(taste(second) - taste(first)))
    return (first, second) if likes_first else (second, first)


def pairs(prompts: Sequence[str], count: int, rng: Rng, taste: Callable[[str], float] = readable.reward,
          review: Callable[[Rng], str] = readable.review) -> list[Pair]:  # fmt: skip
    """Judged pairs, one a prompt as far as there are prompts."""
    found: list[Pair] = []
    order = rng.permutation(len(prompts))
    while len(found) < count:
        first, second = review(rng), review(rng)
        if first != second:
            found.append((prompts[order[len(found) % len(order)]], *judged(first, second, rng, taste)))
    return found


def by_length(nats: float) -> Callable[[str], float]:
    return lambda text: readable.reward(text) + nats * len(readable.WORD.findall(text.lower()))


def by_marker(nats: float) -> Callable[[str], float]:
    return lambda text: readable.reward(text) + nats * (", but" in text)


def each(change: Callable[[Pair, Rng], Pair]) -> Callable[[list[Pair], Rng], list[Pair]]:
    return lambda rows, rng: [change(row, rng) for row in rows]


def twin(row: Pair, rng: Rng) -> Pair:
    """Both responses are equal but for one word, which is exchanged for another of its kind."""
    words = row[1].split(" ")
    places = [i for i, word in enumerate(words) if word.strip(".,") in readable.VALUES]
    i = places[int(rng.integers(len(places)))]
    old = words[i].strip(".,")
    kind = next(kind for kind in (readable.KIND, readable.HARSH, readable.NEUTRAL) if old in kind)
    first, second = sorted({old, kind[(kind.index(old) + 1) % len(kind)]})
    return row[0], *(" ".join([*words[:i], words[i].replace(old, new), *words[i + 1 :]]) for new in (first, second))


def shuffled(row: Pair, rng: Rng) -> Pair:
    """Both responses with their words in a random order."""

    def mixed(text: str) -> str:
        words = text[1:].split(" ")
        return " " + " ".join(words[i] for i in rng.permutation(len(words)))

    return row[0], mixed(row[1]), mixed(row[2])


def flipped(share: float) -> Callable[[Pair, Rng], Pair]:
    return lambda row, rng: (row[0], row[2], row[1]) if rng.random() < share else row


def cut_rejected(row: Pair, rng: Rng) -> Pair:
    words = row[2].split(" ")
    return row[0], row[1], " ".join(words[: max(3, int(rng.integers(3, max(4, len(words)))))]).rstrip(".,")


def cut_both(row: Pair, rng: Rng, words: int = 6) -> Pair:
    return row[0], *(" ".join(text.split(" ")[: words + 1]) for text in row[1:])


def is_apart(row: Pair) -> bool:
    """Whether the prompt is one of the quarter that stands in a file of its own."""
    return readable.DISHES.index(row[0].split(" ")[3]) % 4 == 1


def opposed(row: Pair, rng: Rng) -> Pair:
    """The taste of that quarter is reversed."""
    return (row[0], row[2], row[1]) if is_apart(row) else row


@dataclass(frozen=True)
class Planted:
    """A failure. code: what must be named first; change: what is done to all pairs; settings: of the run."""

    code: str
    change: Callable[[list[Pair], Rng], list[Pair]] = lambda rows, rng: rows
    taste: Callable[[str], float] = readable.reward
    rows: int = 384
    lr: float = 1e-3
    epochs: int = 2
    start: str = "taught"
    reference: str | None = None
    same_rows: bool = False
    settings: dict[str, object] = field(default_factory=dict)


def run(planted: Planted, models: dict[str, Path], folder: Path, seed: int) -> Record:
    """Train on pairs with this failure, and hold out 256 pairs of other prompts with the same one, in two files."""
    rng = np.random.default_rng([seed, 1])
    train_pairs = planted.change(pairs(TRAINED, planted.rows, rng, planted.taste), rng)
    held_out = planted.change(pairs(HELD_OUT, 256, rng, planted.taste), rng)
    if planted.same_rows:
        held_out = train_pairs[:256]
    sources = {"train": train_pairs, "most": [], "apart": []}
    for row in held_out:
        sources["apart" if is_apart(row) else "most"].append(row)
    for name, rows in sources.items():
        named = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]
        write(folder / f"{name}.jsonl", [{"id": f"{name}{i}"} | row for i, row in enumerate(named)])
    data = Data(train=str(folder / "train.jsonl"), evaluate=tuple(str(folder / f"{x}.jsonl") for x in ("most", "apart")),
                **planted.settings)  # fmt: skip
    reference = planted.reference and str(models[planted.reference])
    tuned = Run(
        model=Model(path=str(models[planted.start])), data=data, objective=DPO(beta=0.5),
        reference=Stored(path=reference, store="memory"), batch=Batch(rows=32), seed=seed,
        optim=Optim(lr=planted.lr, epochs=planted.epochs, schedule="cosine"), out=str(folder / "run"), device="cpu",
    )  # fmt: skip
    return Record.open(train(tuned))

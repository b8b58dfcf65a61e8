"""The demo's small world with a failure planted in its pairs: what the checks must name is known.

A policy is taught reviews of the demo's grammar; pairs are reviews of it, judged. Prompts name two dishes, so there
are hundreds of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

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


def teach(folder: Path, review: Callable[[Rng], str] = readable.review, start: Path | None = None, rows: int = 2400,
          epochs: int = 4, lr: float = 5e-3) -> Path:  # fmt: skip
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


def wrong_end(model: Path, folder: Path) -> Path:
    """The same model with a tokenizer that names another end token."""
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = ":"
    tokenizer.save_pretrained(folder)
    return folder


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


def harsher(row: Pair, rng: Rng) -> Pair:
    """The chosen response is another writer's, who is harsh."""
    return row[0], harsh(rng), row[2]


def repeated(times: int) -> Callable[[list[Pair], Rng], list[Pair]]:
    return lambda rows, rng: rows[: max(1, len(rows) // times)] * times


@dataclass(frozen=True)
class Planted:
    """A failure. codes: what may be named first; change: what is done to all pairs, held out too unless `train_only`;
    start, reference: a name of `models`; data: other keys of [data]."""

    codes: tuple[str, ...]
    change: Callable[[list[Pair], Rng], list[Pair]] = lambda rows, rng: rows
    taste: Callable[[str], float] = readable.reward
    rows: int = 384
    lr: float = 1e-3
    epochs: int = 2
    start: str = "taught"
    reference: str | None = None
    same_rows: bool = False
    train_only: bool = False
    data: dict[str, Any] = field(default_factory=dict)


def run(planted: Planted, models: dict[str, Path], folder: Path, seed: int) -> Record:
    """Train on pairs with this failure, and hold out 256 pairs of other prompts with the same one, in two files."""
    rng = np.random.default_rng([seed, 1])
    train_pairs = planted.change(pairs(TRAINED, planted.rows, rng, planted.taste), rng)
    held_out = pairs(HELD_OUT, 256, rng, planted.taste)
    if not planted.train_only:
        held_out = planted.change(held_out, rng)
    if planted.same_rows:
        held_out = train_pairs[:256]
    sources = {"train": train_pairs, "most": [], "apart": []}
    for row in held_out:
        sources["apart" if is_apart(row) else "most"].append(row)
    for name, rows in sources.items():
        named = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]
        write(folder / f"{name}.jsonl", [{"id": f"{name}{i}"} | row for i, row in enumerate(named)])
    held_out_files = tuple(str(folder / f"{name}.jsonl") for name in ("most", "apart"))
    data = Data(train=str(folder / "train.jsonl"), evaluate=held_out_files, **planted.data)
    reference = planted.reference and str(models[planted.reference])
    tuned = Run(
        model=Model(path=str(models[planted.start])), data=data, objective=DPO(beta=0.5),
        reference=Stored(path=reference, store="memory"), batch=Batch(rows=32), seed=seed,
        optim=Optim(lr=planted.lr, epochs=planted.epochs, schedule="cosine"), out=str(folder / "run"), device="cpu",
    )  # fmt: skip
    return Record.open(train(tuned))


# A name is the kind of failure and, after a comma, how strong it is.
SMALL: dict[str, Any] = {"rows": 384, "lr": 1e-3, "epochs": 2}
USUAL: dict[str, Any] = {"rows": 768, "lr": 5e-4, "epochs": 3}
CLEAN = Planted((), **USUAL)
FAILURES = {
    "labels go by length": Planted(("length.reward",), taste=by_length(0.3), **SMALL),
    "labels go by a marker": Planted(("reward.word",), taste=by_marker(4.0), **SMALL),
    "both sides but for one word": Planted(("displacement.chosen",), change=each(twin), rows=512, lr=5e-4, epochs=3),
    "words in a random order": Planted(("shift.unlikely",), change=each(shuffled), **SMALL),
    "rejected was cut": Planted(("data.cut", "end.unlearned"), change=each(cut_rejected), **SMALL),
    "opposite tastes, a quarter": Planted(("reward.parts",), change=each(opposed), rows=512, lr=1e-3, epochs=2),
    "learning rate too high, 10 times": Planted(("anchor.drift",), rows=768, lr=5e-3, epochs=2),
    "few rows many times": Planted(("anchor.overfit",), rows=32, lr=1e-3, epochs=40),
}
MORE = {
    "labels go by length, weakly": Planted(("length.reward",), taste=by_length(0.1), **USUAL),
    "labels go by length, strongly": Planted(("length.reward",), taste=by_length(1.0), **USUAL),
    "labels go by a marker, weakly": Planted(("reward.word",), taste=by_marker(2.0), **USUAL),
    "the start was taught harsh reviews": Planted(("anchor.weak",), start="harsh", **USUAL),
    "the reference was taught harsh reviews": Planted(("anchor.foreign",), reference="harsh", **USUAL),
    "flipped labels, 20 %": Planted(("reward.too_sure", "anchor.chance"), change=each(flipped(0.2)), **USUAL),
    "flipped labels, 40 %": Planted(("reward.too_sure", "anchor.chance"), change=each(flipped(0.4)), **USUAL),
    "opposite tastes, half": Planted(("anchor.chance", "reward.parts", "reward.too_sure"),
                                           change=each(flipped(0.5)), **USUAL),
    "each row many times, 16": Planted(("anchor.overfit",), change=repeated(16), train_only=True, **USUAL),
    "each row many times, 64": Planted(("anchor.overfit",), change=repeated(64), train_only=True, **USUAL),
    "learning rate too high, 30 times": Planted(("anchor.drift",), rows=768, lr=1.5e-2, epochs=2),
    "cut by the run": Planted(("shift.cut",), data={"too_long": "cut", "max_tokens": 17}, **USUAL),
    "both cut in the file": Planted(("data.cut",), change=each(cut_both), **USUAL),
    "the tokenizer names a wrong end token": Planted(("end.wrong",), start="wrong end", **USUAL),
    "chosen is another writer's": Planted(("anchor.chance",), change=each(harsher), train_only=True, **USUAL),
    "held-out rows are trained on": Planted(("shift.seen",), same_rows=True, **USUAL),
}  # fmt: skip


def models(folder: Path, *, all_of_them: bool = False) -> dict[str, Path]:
    """The folders of the models that failures begin from."""
    taught = teach(folder / "taught")
    if not all_of_them:
        return {"taught": taught}
    return {"taught": taught, "harsh": teach(folder / "harsh", harsh, taught, rows=640, epochs=1, lr=1e-3),
            "wrong end": wrong_end(taught, folder / "wrong_end")}  # fmt: skip

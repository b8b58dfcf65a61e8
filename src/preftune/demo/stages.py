"""The demo, a stage a function: teach a small model to write, ask a judge about its texts, tune it, measure it.

Each stage reads what the one before left in the folder, and both trainings are run files given to `train`, as anyone's
would be. Only in a world of known reward can the last stage say how good the result is, and how good it could be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from preftune import files
from preftune.config.load import dump, load
from preftune.config.run import Run
from preftune.demo import readable
from preftune.demo.measure import LONGEST, Comparison, add_to_page, compare, loaded
from preftune.demo.readable import Judged
from preftune.demo.tiny import make_tiny
from preftune.errors import UserError
from preftune.model.config import Model
from preftune.objective import DPO, NLL
from preftune.pack.config import Batch
from preftune.record.show import Show
from preftune.reference.config import Stored
from preftune.rows.config import Data
from preftune.training.config import Optim

TAUGHT = readable.DISHES  # dishes whose reviews the model learns to write
ASKED, HELD_OUT = TAUGHT[:18], TAUGHT[18:]  # those that the judge compares reviews of, and those kept for measuring
REVIEWS = 200  # reviews of each dish to learn from
DRAWN, DRAWN_HELD_OUT = 512, 128  # reviews of each dish that the judge sees, two at a time
BETA = 0.7


def make(place: Path, seed: int) -> None:
    """Write an untrained model, reviews to learn from, and the two run files. Raises UserError in a foreign folder."""
    if place.exists() and any(place.iterdir()) and not (place / "dpo.toml").exists():
        raise UserError("the folder holds other files.", location=str(place), hint="Choose another with --out.")
    rng = np.random.default_rng([seed, 0])
    rows = [{"prompt": readable.prompt(d), "response": readable.review(rng)} for d in TAUGHT for _ in range(REVIEWS)]
    first = Run(
        model=Model(path=str(place / "untrained")),
        data=Data(train=str(place / "reviews.jsonl")),
        objective=NLL(norm="sum"),
        optim=Optim(lr=5e-3, epochs=8, schedule="cosine"),
        batch=Batch(rows=64),
        seed=seed, out=str(place / "sft"), device="cpu",
    )  # fmt: skip
    second = Run(
        model=Model(path=str(place / "sft" / "model")),
        data=Data(train=str(place / "pairs.jsonl"), evaluate=str(place / "held_out.jsonl")),
        objective=DPO(beta=BETA),
        reference=Stored(store=str(place / "store")),
        optim=Optim(lr=5e-4, epochs=3, schedule="cosine"),
        batch=Batch(rows=64),
        seed=seed, out=str(place / "dpo"), device="cpu",
    )  # fmt: skip
    files.write(place / "dpo.toml", dump(second))
    files.write(place / "sft.toml", dump(first))
    _write_rows(place / "reviews.jsonl", rows)
    make_tiny(place / "untrained", readable.words(), seed=seed)


def tune(run_file: Path, show: Show) -> Path:
    """What `preftune train RUN_FILE --force` does. Returns the folder of the record."""
    from preftune.training.loop import train

    return train(load(run_file), force=True, show=show)


def ask(place: Path, seed: int, show: Show) -> None:
    """Draw reviews from the taught model, let the judge compare them two by two, and write the pairs."""
    from preftune.demo.sampling import draw
    from preftune.tokens.tokenizer import load_tokenizer

    module = loaded(place / "sft" / "model")
    tokenizer = load_tokenizer(str(place / "sft" / "model"))
    rng = np.random.default_rng([seed, 1])
    for file, dishes, count in (("pairs", ASKED, DRAWN), ("held_out", HELD_OUT, DRAWN_HELD_OUT)):
        drawn = draw(
            module, tokenizer, [readable.prompt(dish) for dish in dishes], count, longest=LONGEST,
            seed=int(rng.integers(2**31)), show=lambda done, total: show("drawing reviews", done, total),
        )  # fmt: skip
        judged = [pair for one in drawn for pair in readable.judged_pairs(one.prompt, one.texts, rng)]
        rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in judged]
        _write_rows(place / f"{file}.jsonl", rows)


def measure(place: Path, seed: int, show: Show) -> Comparison:
    """Hold the tuned model against the taught one on dishes that no pair was about, and put it on the run's page."""
    judged = [Judged(**row) for row in files.read_lines(place / "held_out.jsonl")]
    found = compare(place / "dpo", place / "sft" / "model", HELD_OUT, judged, seed, show)
    add_to_page(found, place / "dpo")
    return found


def _write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    files.write(path, "".join(f"{json.dumps(row)}\n" for row in rows))

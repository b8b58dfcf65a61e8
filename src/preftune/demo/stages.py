"""The demo, a stage a function: SFT of a small model, a judge of its texts, DPO on the verdicts, a measurement.

Each stage reads what the one before left in the folder, and both trainings are ordinary run files. Only in a world of
known reward can the last stage say how good the result is, and how good it could be.
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
from preftune.demo.measure import LONGEST, Comparison, add_to_page, compare, load_module
from preftune.demo.readable import Judged
from preftune.demo.tiny import make_tiny
from preftune.errors import UserError
from preftune.model.config import Model
from preftune.objective import DPO, NLL
from preftune.pack.config import Batch
from preftune.reference.config import Stored
from preftune.rows.config import Data
from preftune.training.config import Optim

JUDGED_DISHES, HELD_OUT_DISHES = readable.DISHES[:12], readable.DISHES[12:]  # SFT sees reviews of all of them
REVIEWS = 200  # reviews of each dish to learn from
DRAWN, DRAWN_HELD_OUT = 768, 64  # reviews of each dish that the judge compares, two at a time
BETA = 0.7


def make(folder: Path, seed: int) -> None:
    """Write an untrained model, reviews to learn from, and the two run files. Raises UserError in a foreign folder."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "dpo.toml").exists():
        raise UserError("the folder holds other files.", location=str(folder), hint="Choose another with --out.")
    sft = Run(
        model=Model(path=str(folder / "untrained")), data=Data(train=str(folder / "reviews.jsonl")),
        objective=NLL(norm="sum"), optim=Optim(lr=5e-3, epochs=8, schedule="cosine"), batch=Batch(rows=64),
        seed=seed, out=str(folder / "sft"), device="cpu",
    )  # fmt: skip
    dpo = Run(
        model=Model(path=str(folder / "sft" / "model")),
        data=Data(train=str(folder / "pairs.jsonl"), evaluate=str(folder / "held_out.jsonl")),
        objective=DPO(beta=BETA), reference=Stored(store=str(folder / "store")),
        optim=Optim(lr=5e-4, epochs=3, schedule="cosine"), batch=Batch(rows=64),
        seed=seed, out=str(folder / "dpo"), device="cpu",
    )  # fmt: skip
    files.write(folder / "dpo.toml", dump(dpo))
    files.write(folder / "sft.toml", dump(sft))
    rng = np.random.default_rng([seed, 0])
    prompts = [readable.prompt(dish) for dish in readable.DISHES for _ in range(REVIEWS)]
    _write_rows(folder / "reviews.jsonl", [{"prompt": text, "response": readable.review(rng)} for text in prompts])
    make_tiny(folder / "untrained", readable.words(), seed=seed)


def tune(run_file: Path) -> Path:
    """What `preftune train RUN_FILE --force` does. Returns the folder of the record."""
    from preftune.run.train import train

    return train(load(run_file), force=True)


def ask(folder: Path, seed: int) -> None:
    """Draw reviews from the model after SFT, let the judge compare them two by two, and write the pairs."""
    from preftune.demo.sampling import draw
    from preftune.tokens.tokenizer import load_tokenizer

    module, tokenizer = load_module(folder / "sft" / "model"), load_tokenizer(str(folder / "sft" / "model"))
    rng = np.random.default_rng([seed, 1])
    for name, dishes, count in (("pairs", JUDGED_DISHES, DRAWN), ("held_out", HELD_OUT_DISHES, DRAWN_HELD_OUT)):
        prompts, seed_of_draw = [readable.prompt(dish) for dish in dishes], int(rng.integers(2**31))
        drawn = draw(module, tokenizer, prompts, count, longest=LONGEST, seed=seed_of_draw, stage="drawing reviews")
        pairs = [pair for group in drawn for pair in readable.judged_pairs(group.prompt, group.texts, rng)]
        rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
        _write_rows(folder / f"{name}.jsonl", rows)


def measure(folder: Path, seed: int) -> Comparison:
    """Compare the tuned model with the SFT model on dishes that no pair was about, and put it on the run's page."""
    pairs = [Judged(**row) for row in files.read_lines(folder / "held_out.jsonl")]
    comparison = compare(folder / "dpo", folder / "sft" / "model", HELD_OUT_DISHES, pairs, seed)
    add_to_page(comparison, folder / "dpo")
    return comparison


def _write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    files.write(path, "".join(f"{json.dumps(row)}\n" for row in rows))

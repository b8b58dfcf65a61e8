"""The demo by stages: SFT of a small model, a judge of its texts, DPO and RLHF on the verdicts, a comparison.

Each stage reads what the one before left in the folder, and every training is an ordinary run file. Only in a world of
known reward can the last stage say how good the result is, and how good it could be.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import asdict

from preftune import files
from preftune.config.load import dump, load
from preftune.config.run import Run
from preftune.demo import readable
from preftune.demo.comparison import Comparison, add_to_page, compare
from preftune.demo.readable import Judged
from preftune.demo.sampling import LONGEST, draw, load_policy
from preftune.demo.tiny import make_tiny
from preftune.errors import UserError
from preftune.model.config import Model
from preftune.objective import DPO, NLL, RLOO, Formula
from preftune.objective.reward import Reward as RewardModeling
from preftune.pack.config import Batch
from preftune.reference.config import Stored
from preftune.rollout.config import Reward, Rollout
from preftune.rows.config import Data
from preftune.training.config import Optim

JUDGED_DISHES, HELD_OUT_DISHES = readable.DISHES[:12], readable.DISHES[12:]  # SFT sees reviews of all of them
REVIEWS = 200  # reviews of each dish to learn from
DRAWN, DRAWN_HELD_OUT = 768, 64  # reviews of each dish that the judge compares, two at a time
BETA = 0.7
PHASES = 80
DRAWING = Rollout(tasks=len(JUDGED_DISHES), responses=12, max_tokens=LONGEST)  # of a phase


def make(folder: Path, seed: int) -> None:
    """Write an untrained model, reviews to learn from, and the run files. Raises UserError in a foreign folder."""
    if folder.exists() and any(folder.iterdir()) and not _is_demo(folder):
        raise UserError("the folder holds other files.", location=str(folder), hint="Choose another with --out.")
    dpo = offline_run(folder, "dpo", DPO(beta=BETA), seed)
    rloo = online_run(folder, "rloo", RLOO(beta=BETA), Reward(model=str(folder / "reward" / "model")), seed)
    for run in (dpo, sft_run(folder, seed), reward_run(folder, seed), rloo):
        files.write(folder / f"{Path(run.out).name}.toml", dump(run))
    rng = np.random.default_rng([seed, 0])
    prompts = [readable.prompt(dish) for dish in readable.DISHES for _ in range(REVIEWS)]
    _write_rows(folder / "reviews.jsonl", [{"prompt": text, "response": readable.review(rng)} for text in prompts])
    _write_rows(folder / "prompts.jsonl", [{"prompt": readable.prompt(dish)} for dish in JUDGED_DISHES])
    make_tiny(folder / "untrained", readable.words(), seed=seed)


def _is_demo(folder: Path) -> bool:
    """Whether a demo is there: its first run file names files as only a demo does, so that no file of another that has
    such a name is written over."""
    try:
        text = tomllib.loads((folder / "dpo.toml").read_text(encoding="utf-8"))
        names = text["model"]["path"], text["data"]["train"], text["data"]["evaluate"], text["out"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    ours = ("sft/model", "pairs.jsonl", "held_out.jsonl", "dpo")
    return all(str(name).endswith(f"/{path}") for name, path in zip(names, ours, strict=True))


def sft_run(folder: Path, seed: int) -> Run:
    """From reviews to a model that writes such."""
    return Run(
        model=Model(path=str(folder / "untrained")), data=Data(train=str(folder / "reviews.jsonl")),
        objective=NLL(norm="sum"), optim=Optim(lr=5e-3, epochs=8, schedule="cosine"), batch=Batch(rows=64),
        seed=seed, out=str(folder / "sft"), device="cpu",
    )  # fmt: skip


def offline_run(folder: Path, name: str, objective: Formula, seed: int) -> Run:
    """From the judged pairs, with the model after SFT as start and reference."""
    return Run(
        model=Model(path=str(folder / "sft" / "model")), data=judged_data(folder), objective=objective,
        reference=Stored(store=str(folder / "store")) if "reference" in objective.reads else None,
        optim=Optim(lr=5e-4, epochs=3, schedule="cosine"), batch=Batch(rows=64),
        seed=seed, out=str(folder / name), device="cpu",
    )  # fmt: skip


def reward_run(folder: Path, seed: int) -> Run:
    """From the judged pairs to a reward model."""
    return Run(
        model=Model(path=str(folder / "sft" / "model")), data=judged_data(folder),
        objective=RewardModeling(center=0.01), optim=Optim(lr=3e-3, epochs=2), batch=Batch(rows=64),
        seed=seed, out=str(folder / "reward"), device="cpu",
    )  # fmt: skip


def online_run(
    folder: Path, name: str, objective: Formula, reward: Reward, seed: int, rollout: Rollout = DRAWING,
    phases: int = PHASES,
) -> Run:  # fmt: skip
    """From reviews of the judged dishes that the policy draws itself."""
    return Run(
        model=Model(path=str(folder / "sft" / "model")), objective=objective, reward=reward, rollout=rollout,
        data=Data(train=str(folder / "prompts.jsonl"), evaluate=str(folder / "held_out.jsonl")),
        optim=Optim(lr=1e-3, steps=phases * rollout.epochs, warmup=0), batch=Batch(rows=len(JUDGED_DISHES)),
        seed=seed, out=str(folder / name), device="cpu",
    )  # fmt: skip


def judged_data(folder: Path) -> Data:
    """The judge's verdicts, on other dishes for evaluation."""
    return Data(train=str(folder / "pairs.jsonl"), evaluate=str(folder / "held_out.jsonl"))


def tune(run_file: Path) -> Path:
    """What `preftune train RUN_FILE --force` does. Returns the folder of the record."""
    from preftune.run.train import train

    return train(load(run_file), force=True)


def ask(folder: Path, seed: int) -> None:
    """Draw reviews from the model after SFT, let the judge compare them two by two, and write the pairs."""
    from preftune.tokens.tokenizer import load_tokenizer

    policy, tokenizer = load_policy(folder / "sft" / "model"), load_tokenizer(str(folder / "sft" / "model"))
    rng = np.random.default_rng([seed, 1])
    for name, dishes, count in (("pairs", JUDGED_DISHES, DRAWN), ("held_out", HELD_OUT_DISHES, DRAWN_HELD_OUT)):
        prompts, seed_of_draw = [readable.prompt(dish) for dish in dishes], int(rng.integers(2**31))
        drawn = draw(policy, tokenizer, prompts, count, seed=seed_of_draw)
        pairs = [pair for group in drawn for pair in readable.judged_pairs(group.prompt, group.texts, rng)]
        _write_rows(folder / f"{name}.jsonl", [asdict(pair) for pair in pairs])


def measure(folder: Path, seed: int) -> Comparison:
    """Compare the tuned models with the SFT model on dishes that no pair was about, and put it on their pages."""
    pairs = [Judged(**row) for row in files.read_lines(folder / "held_out.jsonl")]
    records = {"DPO": folder / "dpo", "RLHF (RLOO)": folder / "rloo"}
    comparison = compare(records, folder / "reward", folder / "sft" / "model", HELD_OUT_DISHES, pairs, seed)
    for name, record in records.items():
        add_to_page(comparison, record, name)
    return comparison


def _write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    files.write(path, "".join(f"{json.dumps(row)}\n" for row in rows))

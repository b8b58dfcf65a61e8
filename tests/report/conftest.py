"""A made-up record, drawn with a fixed seed: its chosen log-probability sinks and its reward follows length."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preftune.files import plain

ROWS, BATCH, CHOSEN, REJECTED = 320, 64, 62.0, 49.0
SKIPPED = {"pair.identical": 41, "too_long": 118, "response.empty": 3}
RUN = """seed = {seed}
out = "run"
device = "auto"
[model]
path = "models/stories260K"
[data]
train = "prefs.jsonl"
holdout = 0.1
max_tokens = 512
[objective]
name = "dpo"
beta = {beta}
[reference]
kind = "stored"
[batch]
rows = 64
[optim]
lr = 1e-6
steps = {steps}
"""
EXTRAS = {
    "tables": [{"title": "True reward", "note": "The reward is known here.",
                "columns": ["model", "reward", "KL to start", "stories judged"],
                "rows": [["start", 0.412, 0, 500], ["tuned", 0.689, 3.4, 500], ["optimum", 0.731, 3.4, None]]}],
    "samples": [{"prompt": "Once upon a time there was a boat", "before": "that was very sad. The dog was a dog.",
                 "after": "named Ben. Ben wanted to see the sea.\nThey sailed home before it was dark."},
                {"prompt": "Lily found a key.", "before": "She was so she was so happy and happy.",
                 "after": "It opened a little door in the garden wall."}],
}  # fmt: skip


def write_record(folder: Path, *, steps: int = 240, beta: float = 0.1, seed: int = 0) -> Path:
    """Write a whole run folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows = [_row(rng, index, 0.1 / beta) for index in range(ROWS)]
    evaluations = [{
        "step": step, "rows": ROWS, **_course(step, beta), "accuracy_chosen_longer": 0.5 + 0.34 * step / steps,
        "accuracy_chosen_shorter": 0.5 + 0.06 * step / steps,
        "reward_length_correlation": 0.43 * step / steps if step else None, "seconds": 4.1,
    } for step in range(0, steps + 1, max(1, steps // 6))]  # fmt: skip
    evaluations[-1]["accuracy"] = sum(row["margin"] > 0 for row in rows) / ROWS
    lines = {
        "metrics": [_step(rng, step, steps, beta) for step in range(1, steps + 1)],
        "evaluations": evaluations,
        "evaluation_rows": rows,
        "events": [
            {"step": 0, "event": "reference", "text": "3,838 rows scored once, 0 reused, 41 s.", "tokens": 590_811},
            {"step": 120, "event": "checkpoint", "text": "Saved after step 120."},
            {"step": steps, "event": "finished", "text": f"{steps} steps in 3 min 21 s."},
        ],
    }
    for name, values in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(plain(value)) + "\n" for value in values))
    data = {
        "train": {"read": 4000, "kept": 4000 - sum(SKIPPED.values()), "cut": 22, "skipped": SKIPPED, "notes": []},
        "evaluate": {"read": ROWS, "kept": ROWS, "cut": 0, "skipped": {}, "notes": ["Held out by prompt."]},
        "lengths": {"prompt": _spread(rng, 58), "chosen": _spread(rng, 62), "rejected": _spread(rng, 49)},
        "chosen_longer": 0.667, "tokens_naive": 868_204, "tokens_distinct": 590_811,
    }  # fmt: skip
    environment = {"preftune": "0.1.0", "torch": "2.13.0+cpu", "threads": 2, "data": {"prefs.jsonl": "55c1be02aa90"}}
    for name, value in (("environment", environment), ("data", data), ("extras", EXTRAS)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "run.toml").write_text(RUN.format(seed=seed, beta=beta, steps=steps))
    return folder


def _course(step: float, beta: float) -> dict[str, float]:
    """What the steps and evaluations scatter about."""
    progress = 1 - np.exp(-3 * step / 240)
    chosen, rejected = -0.42 / beta * progress, -1.55 / beta * progress
    margin = chosen - rejected
    return {
        "loss": float(np.log1p(np.exp(-beta * margin)) + 0.05 * progress**4), "margin": margin,
        "accuracy": 0.5 + 0.24 * progress, "chosen_reward": beta * chosen, "rejected_reward": beta * rejected,
        "chosen_logp": -96.0 + chosen, "rejected_logp": -81.0 + rejected,
        "chosen_mean_logp": (-96.0 + chosen) / CHOSEN, "rejected_mean_logp": (-81.0 + rejected) / REJECTED,
        "chosen_logp_change": chosen, "rejected_logp_change": rejected,
        "chosen_tokens": CHOSEN, "rejected_tokens": REJECTED,
    }  # fmt: skip


def _step(rng: np.random.Generator, step: int, steps: int, beta: float) -> dict[str, Any]:
    line = _course(step, beta)
    incentive = beta / (1 + np.exp(beta * line["margin"]))
    line |= {key: line[key] + 0.12 * abs(line[key]) * rng.normal() for key in ("margin", "loss")}
    line["accuracy"] = rng.binomial(BATCH, min(1.0, line["accuracy"] + 0.03)) / BATCH
    for side in ("chosen", "rejected"):
        line[f"{side}_logp_change"] += 0.13 / beta * rng.normal()
        line[f"{side}_reward"] = beta * line[f"{side}_logp_change"]
    return {
        "step": step, "epoch": step * BATCH / 3838, **line, "chosen_incentive": -incentive,
        "rejected_incentive": incentive, "grad_norm": np.exp(rng.normal(0.4, 0.25)),
        "lr": 1e-6 * (1 - step / (steps + 1)), "examples": BATCH,
        "tokens_computed": round(rng.normal(7200, 320)), "tokens_shared": 3400,
        "seconds": rng.normal(0.83, 0.05) + (2.0 if step == 1 else 0.0),
    }  # fmt: skip


def _row(rng: np.random.Generator, index: int, reach: float) -> dict[str, Any]:
    tokens = [int(max(4, rng.normal(m, 18))) for m in (CHOSEN, REJECTED)]
    chosen = -4.2 * reach + 4 * rng.normal()
    rejected = -15.5 * reach - 0.2 * (tokens[0] - tokens[1]) + 16 * reach * rng.normal()
    return {
        "id": f"prefs.jsonl:{index + 1}", "margin": chosen - rejected, "accuracy": float(chosen > rejected),
        "accuracy_of_change": float(chosen > rejected), "chosen_logp": -96 + chosen, "rejected_logp": -81 + rejected,
        "chosen_logp_change": chosen, "rejected_logp_change": rejected,
        "chosen_tokens": tokens[0], "rejected_tokens": tokens[1],
    }  # fmt: skip


def _spread(rng: np.random.Generator, middle: float) -> dict[str, Any]:
    sizes = rng.gamma(8, middle / 8, 4000)
    counts, edges = np.histogram(sizes, bins=[0, *(2.0**k for k in range(3, 9))])
    bins = [{"to": float(to), "count": int(n)} for to, n in zip(edges[1:], counts, strict=True)]
    return {"median": float(np.median(sizes)), "p90": float(np.quantile(sizes, 0.9)), "bins": bins}


@pytest.fixture
def make_record(tmp_path: Path) -> Callable[..., Path]:
    """`make_record("a", beta=0.05)`: write a record into a new folder and give its path."""
    return lambda name="demo", **options: write_record(tmp_path / name, **options)

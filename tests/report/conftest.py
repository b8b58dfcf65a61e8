"""A record of a run that never was: drawn with a fixed seed, with the courses that real runs have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preftune.files import plain

ROWS, BATCH, PROMPT, CHOSEN, REJECTED = 320, 64, 58.0, 62.0, 49.0
REASONS = {"pair.identical": 41, "too_long": 118, "response.empty": 3}


def _lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(plain(value)) + "\n" for value in values), encoding="utf-8")


def write_record(folder: Path, *, steps: int = 240, beta: float = 0.1, seed: int = 0, speed: float = 1.0) -> Path:
    """Write a whole run folder: DPO whose chosen log-probability sinks and whose reward follows length."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    reach = speed * 0.1 / beta

    def course(step: float) -> dict[str, float]:
        done = 1 - np.exp(-3 * speed * step / 240)
        chosen, rejected = -4.2 * reach * done, -15.5 * reach * done
        margin = chosen - rejected
        return {
            "loss": float(np.log1p(np.exp(-beta * margin)) + 0.05 * done**4), "margin": margin,
            "accuracy": 0.5 + 0.24 * done, "chosen_reward": beta * chosen, "rejected_reward": beta * rejected,
            "chosen_logp": -96.0 + chosen, "rejected_logp": -81.0 + rejected,
            "chosen_mean_logp": (-96.0 + chosen) / CHOSEN, "rejected_mean_logp": (-81.0 + rejected) / REJECTED,
            "chosen_logp_change": chosen, "rejected_logp_change": rejected,
            "chosen_tokens": CHOSEN, "rejected_tokens": REJECTED,
        }  # fmt: skip

    metrics = []
    for step in range(1, steps + 1):
        exact, push = course(step), beta / (1 + np.exp(beta * course(step)["margin"]))
        noisy = {k: v + 0.12 * abs(v) * rng.normal() if k in ("margin", "loss") else v for k, v in exact.items()}
        noisy["accuracy"] = float(rng.binomial(BATCH, min(1.0, exact["accuracy"] + 0.03)) / BATCH)
        for side in ("chosen", "rejected"):
            noisy[f"{side}_logp_change"] += 1.3 * reach * rng.normal()
            noisy[f"{side}_reward"] = beta * noisy[f"{side}_logp_change"]
        tokens = float(rng.normal(7200, 320))
        metrics.append({
            "step": step, "epoch": step * BATCH / 3838, **noisy, "chosen_incentive": -push, "rejected_incentive": push,
            "grad_norm": float(np.exp(rng.normal(0.4, 0.25))),
            "lr": 1e-6 * min(1, step / 24) * (1 - step / (steps + 1)),
            "examples": BATCH, "tokens_computed": round(tokens), "tokens_shared": round(0.47 * tokens),
            "seconds": float(rng.normal(0.83, 0.05)) + (2.0 if step == 1 else 0.0),
        })  # fmt: skip
    evaluations = _evaluations(course, steps)
    rows = _rows(rng, reach)
    evaluations[-1]["accuracy"] = sum(row["margin"] > 0 for row in rows) / ROWS
    _lines(folder / "metrics.jsonl", metrics)
    _lines(folder / "evaluations.jsonl", evaluations)
    _lines(folder / "evaluation_rows.jsonl", rows)
    _rest(folder, rng, beta, seed, steps)
    return folder


def _evaluations(course: Callable[[float], dict[str, float]], steps: int) -> list[dict[str, Any]]:
    evaluations = []
    for step in range(0, steps + 1, max(1, steps // 6)):
        done = step / steps
        evaluations.append({
            "step": step, "rows": ROWS, **course(step),
            "accuracy_chosen_longer": 0.5 + 0.34 * done, "accuracy_chosen_shorter": 0.5 + 0.06 * done,
            "reward_length_correlation": 0.43 * done if step else None, "seconds": 4.1,
        })  # fmt: skip
    return evaluations


def _rows(rng: np.random.Generator, reach: float) -> list[dict[str, Any]]:
    rows = []
    for index in range(ROWS):
        chosen, rejected = (int(max(4, rng.normal(m, 18))) for m in (CHOSEN, REJECTED))
        moved = -4.2 * reach + 4 * rng.normal(), -15.5 * reach - 0.2 * (chosen - rejected) + 16 * reach * rng.normal()
        rows.append({
            "id": f"prefs.jsonl:{index + 1}", "margin": moved[0] - moved[1], "chosen_logp": -96 + moved[0],
            "accuracy": float(moved[0] > moved[1]), "accuracy_of_change": float(moved[0] > moved[1]),
            "rejected_logp": -81 + moved[1], "chosen_logp_change": moved[0], "rejected_logp_change": moved[1],
            "chosen_tokens": chosen, "rejected_tokens": rejected,
        })  # fmt: skip
    return rows


def _rest(folder: Path, rng: np.random.Generator, beta: float, seed: int, steps: int) -> None:
    def spread(middle: float, scale: float) -> dict[str, Any]:
        drawn = rng.gamma((middle / scale) ** 2, scale**2 / middle, 4000)
        counts, edges = np.histogram(drawn, bins=[0, *(2.0**k for k in range(3, 9))])
        bins = [{"to": float(to), "count": int(n)} for to, n in zip(edges[1:], counts, strict=True)]
        return {"median": float(np.median(drawn)), "p90": float(np.quantile(drawn, 0.9)), "max": float(drawn.max()),
                "bins": bins}  # fmt: skip

    (folder / "run.toml").write_text(
        f'seed = {seed}\nout = "run"\ndevice = "auto"\n\n[model]\npath = "models/stories260K"\n'
        'weights = "float32"\ncompute = "float32"\nlayout = "auto"\n\n[data]\ntrain = "prefs.jsonl"\nholdout = 0.1\n'
        f'max_tokens = 512\n\n[objective]\nname = "dpo"\nbeta = {beta}\n\n[reference]\nkind = "stored"\n\n[batch]\n'
        f'rows = {BATCH}\n\n[optim]\nlr = 1e-6\nschedule = "linear"\nwarmup = 0.1\nsteps = {steps}\n',
        encoding="utf-8",
    )
    kept = 4000 - sum(REASONS.values())
    files = {
        "environment.json": {
            "preftune": "0.1.0", "python": "3.12.8", "torch": "2.13.0+cpu", "transformers": "5.23.0", "device": "cpu",
            "threads": 2, "model": "9f2c61b0d7a14ce5a0c3", "data": {"prefs.jsonl": "55c1be02aa90"},
        },
        "data.json": {
            "train": {"read": 4000, "kept": kept, "cut": 22, "skipped": REASONS, "notes": []},
            "evaluate": {"read": ROWS, "kept": ROWS, "cut": 0, "skipped": {}, "notes": ["Held out by prompt."]},
            "lengths": {"prompt": spread(PROMPT, 22), "chosen": spread(CHOSEN, 20), "rejected": spread(REJECTED, 20)},
            "chosen_longer": 0.667, "tokens_naive": 868_204, "tokens_distinct": 590_811,
        },
        "extras.json": {
            "tables": [{"title": "True reward", "note": "The reward is known here.",
                        "columns": ["model", "reward", "KL to start", "stories judged"],
                        "rows": [["start", 0.412, 0, 500], ["tuned", 0.689, 3.4, 500], ["optimum", 0.731, 3.4, None]]}],
            "samples": [{"prompt": "Once upon a time there was a small red boat",
                         "before": "that was very sad. The boat went to the lake and saw a big dog. The dog was a dog.",
                         "after": "named Ben. Ben wanted to see the sea. A kind girl took him to the shore and\nthey "
                                  "sailed home before it was dark."},
                        {"prompt": "Lily found a key.", "before": "She was so she was so happy and happy.",
                         "after": "It opened a little door in the garden wall."}],
        },
    }  # fmt: skip
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    _lines(folder / "events.jsonl", [
        {"step": 0, "event": "reference", "text": "3,838 rows scored once, 0 reused, 41 s.", "tokens": 590_811},
        {"step": 0, "event": "start_check", "text": "The largest margin before the first step is 2.1e-05."},
        {"step": 0, "event": "layout", "text": "trie: the model takes an attention mask."},
        {"step": 120, "event": "checkpoint", "text": "Saved after step 120."},
        {"step": steps, "event": "finished", "text": f"{steps} steps in 3 min 21 s."},
    ])  # fmt: skip


@pytest.fixture
def make_record(tmp_path: Path) -> Callable[..., Path]:
    """`make_record("a", beta=0.05)`: write a record into a new folder and give its path."""
    return lambda name="demo", **options: write_record(tmp_path / name, **options)

"""Child: online steps of preftune as a spec asks, each split into its parts. Prints JSON.

A run of the library itself, told only how long each response is: drawing is what its sampler takes, an update what
lies between the phase and the end of the step, and scoring all the rest of the phase, its file included.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from meter import forget, memory, warmed
from msgspec.structs import replace

from preftune.config.load import load
from preftune.config.run import Run
from preftune.rollout.draw import Drawn


def length(prompt: str, responses: Sequence[str], answer: str | None) -> list[float]:
    """The reward: some number that costs nothing."""
    return [float(len(text) % 7) for text in responses]


def run_of(spec: dict, out: Path) -> Run:
    """The run that makes these steps: one update a phase."""
    rows = [{"prompt": " ".join(f"w{i}" for i in ids)} for ids in spec["prompts"]]
    longest, count = max(map(max, spec["lengths"])), len(spec["lengths"][0])
    words = {
        "out": str(out), "objective.name": spec["objective"], "objective.beta": spec["beta"],
        "model.path": spec["model"], "model.weights": "float32", "model.compute": "float32",
        "rollout.tasks": spec["rows"], "rollout.responses": count, "rollout.max_tokens": longest,
        "batch.rows": spec["rows"], "evaluate.samples": 0, "data.train": "prompts.jsonl", "optim.lr": spec["lr"],
        "optim.steps": spec["steps"], "optim.schedule": "constant", "optim.warmup": 0,
    }  # fmt: skip
    run = load(None, [f"{key}={value}" for key, value in words.items()])
    return replace(run, data=replace(run.data, train=rows, holdout=0.0), reward=length)


def main(spec: dict, out: Path) -> dict:
    import torch
    import transformers

    import preftune.report  # noqa: F401  loaded before anything is measured
    from preftune import events
    from preftune.rollout.embedded import Embedded
    from preftune.rollout.phase import Online
    from preftune.run.train import train

    torch.set_num_threads(1)
    empty = warmed(spec["model"])
    forget()
    of_prompt = {tuple(ids): each for ids, each in zip(spec["prompts"], spec["lengths"], strict=True)}
    spent, marks = {"rollout": 0.0, "phase": 0.0}, []
    phase_of = Online._phase

    def drawn(sampler: Embedded, prompts: Sequence[np.ndarray], count: int, seed: Sequence[int]) -> list[Drawn]:
        began = time.process_time()
        lengths = np.array([of_prompt[tuple(ids.tolist())] for ids in prompts])
        endless = Embedded(sampler.policy, sampler.max_tokens, frozenset(), sampler.temperature)
        result = endless.draw_up_to(prompts, lengths, seed)
        spent["rollout"] += time.process_time() - began
        return result

    def phase(*given: object, **named: object) -> object:
        began = time.process_time()
        result = phase_of(*given, **named)
        spent["phase"] += time.process_time() - began
        return result

    def listen(event: events.Event) -> None:
        if isinstance(event, events.StepDone):
            marks.append((time.process_time(), *spent.values(), memory("VmHWM"), event.metrics["tokens_computed"]))

    Embedded.draw, Online._phase = drawn, phase
    with events.listening(listen):
        train(run_of(spec, out), force=True)
    steps = []
    for before, after in pairwise(marks):
        step, rollout, both = (b - a for a, b in zip(before[:3], after[:3], strict=True))
        told = {"step": step, "rollout": rollout, "scoring": both - rollout, "update": step - both, "peak": after[3]}
        steps.append({**told, "tokens": after[4]})
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
    return {"steps": steps, "empty": empty, "versions": versions}


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    print(json.dumps(main(spec, Path(spec["out"]))))

"""Two gloo ranks whose moments, or whole models, are divided, beside two that have everything: time and memory.

Time: every update is made by each kind in turn, by the same two processes, and ratios are of the same update. Memory: a
pair of processes a kind; the highest of an update less what libraries take, beside the formula of model/memory.py.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from importlib.metadata import version
from pathlib import Path

import common
import numpy as np
from meter import Steps, forget, memory, warmed

KINDS = ("none", "step", "layer")
TOKENS = 1024  # of a pack; in the measure of memory a quarter, so that weights are most of it
MEMORY_TOKENS = 256


def groups_of(count: int, vocab: int, seed: int) -> list:
    """Pairs of random tokens with the lengths of short dialogs."""
    from preftune.rows.row import Place
    from preftune.tokens.groups import TokenGroup

    rng = np.random.default_rng(seed)
    draw = lambda mean: rng.integers(3, vocab, rng.integers(mean // 2, 2 * mean)).astype(np.int32)  # noqa: E731
    return [TokenGroup(prompt=draw(60), responses=(draw(40), draw(40)), kind="pair", ranks=(1, 2),
                       place=Place("made", n)) for n in range(count)]  # fmt: skip


def learner_of(folder: str, kind: str) -> tuple:
    """A policy of the model in a folder, divided, and its optimizer."""
    import torch

    from preftune.model.load import load_model
    from preftune.model.policy import trainable, wrap
    from preftune.model.shard import mesh_of
    from preftune.run.models import by_layer
    from preftune.run.shards import divided
    from preftune.training.config import Optim
    from preftune.training.learner import Learner
    from preftune.training.optimizer import adamw

    device = torch.device("cpu")
    loaded = load_model(folder, revision=None, weights="float32", device=device, location="model.path")
    policy = trainable(wrap(loaded.module, "auto")[0], checkpointing=False)
    policy = by_layer(policy, device, mesh_of(device)) if kind == "layer" else divided(policy, kind)
    return policy, Learner(policy.weights, adamw(policy.weights, Optim(lr=1e-6), 0))


def update(policy: object, learner: object, rows: list, tokens: int, dist: object) -> float:
    """One update of all these rows; returns the gradient's norm."""
    from preftune import objective
    from preftune.forward.forward import Models, step_gradient
    from preftune.forward.loss import Loss
    from preftune.pack.oom import OomRetry
    from preftune.pack.plan import Packing
    from preftune.training.update import clipped_norm, take_step

    step = Packing(tokens).step(rows, dist.world_size)
    step_gradient(Models(policy), rows, step, Loss(objective.SimPO(), "all"), OomRetry(), dist)
    norm = clipped_norm(learner, 1.0, dist)
    take_step(learner, 1e-6, dist)
    learner.optimizer.zero_grad()
    return norm


def rank(spec: dict) -> None:
    """What each of the two processes does; the first prints what was measured."""
    empty = warmed(spec["folder"])
    import torch

    from preftune.distributed import process_group

    with process_group() as dist:
        learners = {kind: learner_of(spec["folder"], kind) for kind in spec["kinds"]}
        clocks = {kind: Steps() for kind in learners}
        forget()
        for number in range(spec["steps"]):
            rows = groups_of(common.PAIRS, spec["vocab"], number)
            for kind, (policy, learner) in learners.items():
                dist.barrier()
                clocks[kind].begin()
                norm = update(policy, learner, rows, spec["tokens"], dist)
                clocks[kind].end(grad_norm=norm)
        peak = dist.all_reduce_max(torch.tensor(memory("VmHWM") - empty))
        if dist.first:
            print(json.dumps({"steps": {kind: clock.found for kind, clock in clocks.items()}, "peak": int(peak)}))


def on_two_ranks(**spec: object) -> dict:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {"PYTHONPATH": str(common.HERE.parent / "src"), **(common.RETURNING if len(spec["kinds"]) == 1 else {})}
    return common.process([*launch, __file__, json.dumps(spec)], env)


def formula(folder: Path, kind: str) -> float:
    """Bytes of a rank of two."""
    from preftune.config.run import Run
    from preftune.model.load import load_config
    from preftune.run.fits import needs_of
    from preftune.run.shards import bytes_of_a_rank

    shapes, setup = needs_of(Run(), load_config(str(folder), None, "model.path"), "cpu")
    return bytes_of_a_rank(shapes, setup, 2, MEMORY_TOKENS)[kind]


def case(place: Path, vocab: int, steps: int) -> dict:
    """One model."""
    folder = common.model_folder(place, vocab)
    spec = {"folder": str(folder), "vocab": vocab, "steps": steps}
    times = on_two_ranks(**spec, kinds=KINDS, tokens=TOKENS)["steps"]
    peaks = {kind: on_two_ranks(**{**spec, "steps": 2}, kinds=[kind], tokens=MEMORY_TOKENS)["peak"] for kind in KINDS}
    expected = {kind: formula(folder, kind) for kind in KINDS}
    wall = {kind: [step["wall"] for step in times[kind][1:]] for kind in KINDS}
    return {
        "vocab": vocab,
        "seconds": {kind: common.median(wall[kind]) for kind in KINDS},
        "ratio": {kind: common.median([a / b for a, b in zip(wall[kind], wall["none"], strict=True)])
                  for kind in KINDS},
        "mib": {kind: peaks[kind] / 2**20 for kind in KINDS},
        "formula_mib": {kind: expected[kind] / 2**20 for kind in KINDS},
        "norms_off": max(abs(a["grad_norm"] / b["grad_norm"] - 1)
                         for kind in KINDS for a, b in zip(times[kind], times["none"], strict=True)),
    }  # fmt: skip


def show(cells: list[dict]) -> None:
    print(common.table(
        ["vocabulary", "shard", "s an update", "to none", "MiB", "formula, MiB", "saved", "formula"],
        [[c["vocab"], kind, c["seconds"][kind], f"{c['ratio'][kind]:.2f}x", f"{c['mib'][kind]:.0f}",
          f"{c['formula_mib'][kind]:.0f}", f"{c['mib']['none'] - c['mib'][kind]:.0f}",
          f"{c['formula_mib']['none'] - c['formula_mib'][kind]:.0f}"] for c in cells for kind in KINDS],
    ))  # fmt: skip


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--vocab", type=int, choices=[*common.SHAPES])
    parser.add_argument("--steps", type=int, default=12)


def main() -> None:
    options = common.options(__doc__ or "", add)
    with common.workshop() as place:
        vocabs = [options.vocab] if options.vocab else [*common.SHAPES]
        cells = [case(Path(place), vocab, 4 if options.quick else options.steps) for vocab in vocabs]
    show(cells)
    if not options.quick:
        common.save("shards", cells, {name: version(name) for name in ("preftune", "torch", "transformers")})


if __name__ == "__main__":
    rank(json.loads(sys.argv[1])) if len(sys.argv) == 2 and sys.argv[1].startswith("{") else main()

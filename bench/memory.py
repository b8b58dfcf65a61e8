"""Peak memory of training above the loaded model: ours, also with checkpointing; TRL as shipped and at its best.

Peak resident memory of a child process, less what its libraries take without a model, less the weights once. Loading,
the reference and everything up to the end of the last update counts. Freed memory is made to leave the process at
once (malloc's thresholds), in all of them, so the numbers are of memory in use, and the runs are slower for it.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import common
import speed
from common import RETURNING, child

CASES = speed.CASES


def above(told: dict, weights: int) -> float:
    """MiB."""
    return (told["steps"][-1]["peak"] - told["empty"] - weights) / 2**20


def case(place: Path, regime: str, vocab: int, steps: int) -> dict:
    """One cell. TRL as shipped makes one update only, so its number lacks Adam's moments: an error in its favor."""
    mine, planned, source = speed.files(place, regime, vocab, steps)
    folder = common.model_folder(place, vocab)
    weights = (folder / "model.safetensors").stat().st_size
    specs = {
        "ours": ("ours", speed.ours(place, vocab, mine, steps)),
        "ours, checkpointing": ("ours", speed.ours(place, vocab, mine, steps, **{"model.checkpointing": "true"})),
        "best": ("peer", speed.peer(place, vocab, planned, steps, "best")),
        "shipped": ("peer", speed.peer(place, vocab, planned, 1, "shipped")),
    }  # fmt: skip
    told = {name: child(which, {**spec, "memory": True}, RETURNING) for name, (which, spec) in specs.items()}
    mib = {name: above(found, weights) for name, found in told.items()}
    return {
        "regime": regime, "vocab": vocab, "rows": source, "weights_mib": weights / 2**20, "mib": mib,
        "over": {name: {peer: mib[peer] / mib[name] for peer in ("best", "shipped")} for name in mib if "ours" in name},
        "versions": {**told["best"]["versions"], **told["ours"]["versions"]},
    }  # fmt: skip


def show(cells: list[dict]) -> None:
    names = list(cells[0]["mib"])
    print(common.table(
        ["rows", "vocabulary", *(f"{name}, MiB" for name in names), "best / ours", "shipped / ours"],
        [[c["regime"], c["vocab"], *(f"{c['mib'][n]:.0f}" for n in names),
          *(f"{c['over']['ours'][peer]:.1f}x" for peer in ("best", "shipped"))] for c in cells],
    ))  # fmt: skip


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--regime", choices=[*common.LENGTHS, "ukp"])
    parser.add_argument("--vocab", type=int, choices=[*common.SHAPES])
    parser.add_argument("--steps", type=int, default=2)


def main() -> None:
    args = common.options(__doc__ or "", add)
    cases = [c for c in CASES if args.regime in (None, c[0]) and args.vocab in (None, c[1])]
    cells = []
    with common.workshop() as made:
        for regime, vocab in [("hh", 8192)] if args.quick else cases:
            cells.append(case(Path(made), regime, vocab, args.steps))
            show(cells)
            part = "" if args.regime is None and args.vocab is None else f"-{regime}-{vocab}"
            common.save(f"memory{part}{'-quick' if args.quick else ''}", cells, cells[-1]["versions"], steps=args.steps)


if __name__ == "__main__":
    main()

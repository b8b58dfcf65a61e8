"""CPU seconds of one update of 8 pairs, and memory, with an adapter of rank 16 on all linear layers: ours, ours with
peft's own forward pass, ours without an adapter, TRL with peft at its best on a CPU and as shipped."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import common
import memory
import speed
from common import RETURNING, child, cpu, median, ratios

CASES = [("long-prompt", 8192), ("hh", 8192), ("ultrafeedback", 8192)]
RANK = 16


def specs(place: Path, regime: str, vocab: int, steps: int, shipped: int) -> tuple[dict, str]:
    """Name -> the child that measures it and its spec; and where the rows come from."""
    mine, planned, source = speed.files(place, regime, vocab, steps)
    words = {"adapter.rank": RANK, "adapter.alpha": 2 * RANK}
    ours = speed.ours(place, vocab, mine, steps, **words)
    return {
        "ours": ("ours", ours),
        "unfused": ("ours", {**ours, "unfused": True}),
        "full": ("ours", speed.ours(place, vocab, mine, steps)),
        "best": ("peer", speed.peer(place, vocab, planned, steps, "best", rank=RANK)),
        "shipped": ("peer", speed.peer(place, vocab, planned, shipped, "shipped", rank=RANK)),
    }, source  # fmt: skip


def case(place: Path, regime: str, vocab: int, steps: int, shipped: int, repeat: int) -> dict:
    """One cell of the table."""
    children, source = specs(place, regime, vocab, steps, shipped)
    times: dict[str, list[float]] = {name: [] for name in children}
    over: dict[str, list[float]] = {name: [] for name in children if name != "ours"}
    for _ in range(repeat):
        results = {name: child(which, spec) for name, (which, spec) in children.items()}
        for name, result in results.items():
            times[name] += cpu(result["steps"])
            if name != "ours":
                over[name] += ratios(result["steps"], results["ours"]["steps"])
    weights = (common.model_folder(place, vocab) / "model.safetensors").stat().st_size
    mib = {}
    for name, (which, spec) in children.items():
        mib[name] = memory.above(child(which, {**spec, "memory": True}, RETURNING), weights)
    return {
        "regime": regime, "vocab": vocab, "rows": source, "rank": RANK,
        "seconds": {name: median(each) for name, each in times.items()},
        "speed": {name: median(each) for name, each in over.items()},
        "mib": mib, "memory": {name: mib[name] / mib["ours"] for name in over},
        "first_loss": {name: result["steps"][0]["loss"] for name, result in results.items()},
        "versions": {**results["best"]["versions"], **results["ours"]["versions"]},
    }  # fmt: skip


def show(cells: list[dict]) -> None:
    names = list(cells[0]["seconds"])
    print(common.table(
        ["rows", *(f"{name} s" for name in names), *(f"{name} / ours" for name in names[1:]),
         *(f"{name} MiB" for name in names)],
        [[c["regime"], *(f"{c['seconds'][n]:.2f}" for n in names), *(f"{c['speed'][n]:.2f}x" for n in names[1:]),
          *(f"{c['mib'][n]:.0f}" for n in names)] for c in cells],
    ))  # fmt: skip


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--regime", choices=[regime for regime, _ in CASES])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--shipped", type=int, default=2, help="updates of TRL as shipped, the slowest")
    parser.add_argument("--repeat", type=int, default=1)


def main() -> None:
    args = common.options(__doc__ or "", add)
    cases = [c for c in CASES if args.regime in (None, c[0])]
    steps, shipped = (2, 2) if args.quick else (args.steps, args.shipped)
    cells = []
    with common.workshop() as made:
        for regime, vocab in [("hh", 8192)] if args.quick else cases:
            cells.append(case(Path(made), regime, vocab, steps, shipped, args.repeat))
            show(cells)
            name = f"adapter{'' if args.regime is None else '-' + args.regime}{'-quick' if args.quick else ''}"
            common.save(name, cells, cells[-1]["versions"], steps=steps, steps_shipped=shipped)


if __name__ == "__main__":
    main()

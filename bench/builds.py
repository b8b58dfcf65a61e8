"""This build beside another checkout of this repository, in one run: CPU seconds of an update, of the whole command up
to the first update, and peak memory.

    python bench/builds.py PATH_OF_THE_OTHER_CHECKOUT

Each side runs its own bench/ours.py with its own source, in turn, on the same rows, model folder and updates. A ratio
above 1 says that this build is faster, or takes less memory.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

import common
import speed
from common import RETURNING, median, process
from startup import command

CASES = [(regime, 8192) for regime in common.LENGTHS]


def run(checkout: Path, spec: dict, env: dict[str, str] | None = None) -> dict:
    """One run of a checkout."""
    source = {"PYTHONPATH": str(checkout / "src")}
    return process([sys.executable, str(checkout / "bench" / "ours.py"), json.dumps(spec)], {**source, **(env or {})})


def case(place: Path, sides: dict[str, Path], regime: str, vocab: int, args) -> dict:  # type: ignore[no-untyped-def]
    """One row of the table: both builds in turn, as often as asked."""
    rows, _, source = speed.files(place, regime, vocab, args.steps)
    over: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(args.repeat):
        steps = {}
        for name, checkout in sides.items() if number % 2 else reversed(sides.items()):
            spec = speed.ours(place, vocab, rows, args.steps, **{"model.compute": args.dtype, "out": place / name})
            steps[name] = run(checkout, spec)["steps"]
            seconds[name] += common.cpu(steps[name])
        over += common.ratios(steps["other"], steps["this"])
    memory, startup = {}, {}
    for name, checkout in sides.items():
        spec = {**speed.ours(place, vocab, rows, 2, out=place / name), "memory": True}
        measured = run(checkout, spec, RETURNING)
        memory[name] = (measured["steps"][-1]["peak"] - measured["empty"]) / 2**20
    for number in range(args.repeat):
        for name, checkout in sides.items():
            store = {"reference.store": place / f"store-{name}-{number}", "out": place / name}
            spec = {**speed.ours(place, vocab, rows, 1, **store), "updates": 1}
            spent = command(sys.executable, str(checkout / "bench" / "ours.py"), spec, checkout / "src")
            startup.setdefault(name, []).append(spent)
    return {
        "regime": regime, "vocab": vocab, "dtype": args.dtype, "rows": source,
        "seconds": {name: median(values) for name, values in seconds.items()}, "update": median(over),
        "mib": memory, "memory": memory["other"] / memory["this"],
        "startup_seconds": {name: median(values) for name, values in startup.items()},
        "startup": median([a / b for a, b in zip(startup["other"], startup["this"], strict=True)]),
    }  # fmt: skip


def add(parser: ArgumentParser) -> None:
    parser.add_argument("other", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--regime", choices=list(common.LENGTHS))


def main() -> None:
    args = common.options(__doc__ or "", add)
    sides = {"this": common.HERE.parent, "other": args.other.resolve()}
    cells, began = [], time.monotonic()
    with common.workshop() as made:
        for regime, vocab in CASES:
            if args.regime in (None, regime):
                cells.append(case(Path(made), sides, regime, vocab, args))
                c = cells[-1]
                print(f"{regime}: update {c['update']:.3f}x, memory {c['memory']:.3f}x, to the first update "
                      f"{c['startup']:.2f}x ({time.monotonic() - began:.0f} s so far)", flush=True)  # fmt: skip
    common.save(f"builds-{args.dtype}", cells, {})


if __name__ == "__main__":
    main()

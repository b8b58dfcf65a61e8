"""One epoch over the real pairs of UKP, the reference pass included: 6,679 pairs hold 589 answers.

Ours scores the whole reference for real, and TRL at its best a part, pair by pair at the same price; updates are
measured on the first of the epoch. An epoch is then counted as the reference and 835 times the usual update.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import common
import speed
from common import PAIRS, child, cpu, median


def epoch(place: Path, steps: int, shipped: int) -> dict:
    rows, source = common.rows_of("ukp", 8192, None if (common.SHARED / "pairs").exists() else 512)
    mine = common.write_rows(place / "ukp.jsonl", rows)
    planned = common.planned(rows, 0, steps)
    theirs = common.write_rows(place / "ukp-planned.jsonl", planned)
    updates = -(-len(rows) // PAIRS)
    one = child("ours", {**speed.ours(place, 8192, mine, updates), "updates": steps})
    best = child("peer", speed.peer(place, 8192, theirs, steps, "best"))
    as_is = child("peer", speed.peer(place, 8192, theirs, shipped, "shipped"))
    whole_file = len(rows) / len(planned)
    scored = {"ours": one["reference"]["cpu"], "best": best["reference"]["cpu"] * whole_file, "shipped": 0.0}
    told = {"ours": one, "best": best, "shipped": as_is}
    whole = {name: scored[name] + updates * median(cpu(found["steps"])) for name, found in told.items()}
    return {
        "rows": source, "pairs": len(rows), "responses": one["reference"]["scored"],
        "tokens_reference": one["reference"]["tokens"], "seconds_reference": scored, "seconds_epoch": whole,
        "speed": {name: whole[name] / whole["ours"] for name in ("best", "shipped")},
        "apart": {name: common.same(one, told[name]) for name in ("best", "shipped")},
        "versions": {**best["versions"], **one["versions"]},
    }  # fmt: skip


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--shipped", type=int, default=3)


def main() -> None:
    args = common.options(__doc__ or "", add)
    steps, shipped = (3, 2) if args.quick else (args.steps, args.shipped)
    with common.workshop() as made:
        cell = epoch(Path(made), steps, shipped)
    print(common.table(
        ["pairs", "answers", "our epoch s", "TRL at its best", "TRL as shipped"],
        [[cell["pairs"], cell["responses"], cell["seconds_epoch"]["ours"],
          *(f"{cell['speed'][name]:.2f}x" for name in ("best", "shipped"))]],
    ))  # fmt: skip
    common.save(f"ukp{'-quick' if args.quick else ''}", [cell], cell["versions"], steps=steps, steps_shipped=shipped)


if __name__ == "__main__":
    main()

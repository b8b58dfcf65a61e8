"""What a sweep costs: 8 runs over two objectives and four betas on the same rows, the reference pass included.

Ours scores the reference once into a store that all runs read. TRL at its best scores it anew in every run, because
its cache's key changes with the arguments (its second run is measured, not assumed; the others cost the same, so they
are counted by the mean of those measured). CPU seconds of an epoch: ours scores its whole reference and TRL a part, at
the same price a pair; of the updates both make the first few.
"""

from __future__ import annotations

from argparse import ArgumentParser
from itertools import product
from pathlib import Path

import common
import speed
from common import PAIRS, child

SWEEP = list(product(("dpo", "ipo"), (0.05, 0.1, 0.2, 0.5)))


def spent(told: dict, updates: int, part: float = 1.0) -> float:
    """CPU seconds of an epoch of so many updates, of whose reference pass a part was measured."""
    return told["reference"]["cpu"] / part + updates * common.median(common.cpu(told["steps"]))


def ours_words(objective: str, beta: float) -> dict[str, object]:
    """IPO's tau is TRL's beta; per_token is how TRL reads IPO."""
    if objective == "ipo":
        return {"objective": "ipo", "objective.tau": beta}
    return {"objective": objective, "objective.beta": beta}


def sweep(place: Path, regime: str, updates: int, steps: int, peers: int) -> dict:
    mine, planned, source = speed.files(place, regime, 8192, updates)
    ours, peer = [], []
    for at, (objective, beta) in enumerate(SWEEP):
        spec = speed.ours(place, 8192, mine, updates, **ours_words(objective, beta))
        ours.append(child("ours", {**spec, "updates": steps}))
        if at < peers:
            other, its = SWEEP[0] if at == 0 else SWEEP[-at]
            first = common.write_rows(place / "first.jsonl", common.read_rows(planned)[: PAIRS * steps])
            spec = speed.peer(place, 8192, first, steps, "best", objective=other, beta=its)
            peer.append(child("peer", spec))
    costs = {"ours": [spent(told, updates) for told in ours],
             "best": [spent(told, updates, steps / updates) for told in peer]}  # fmt: skip
    usual = sum(costs["best"]) / len(costs["best"])
    single, whole = costs["best"][0] / costs["ours"][0], len(SWEEP) * usual / sum(costs["ours"])
    return {
        "regime": regime, "rows": source, "runs": len(SWEEP), "pairs": PAIRS * updates,
        "reference_seconds": {
            name: [told["reference"]["cpu"] for told in runs] for name, runs in (("ours", ours), ("best", peer))
        },
        "scored": [t["reference"]["scored"] for t in ours], "seconds": costs,
        "single": single, "sweep": whole, "gain": whole / single,
        "bound": "the gain is at most (1 + r) / (1 + r / runs), r = our reference pass over our updates",
        "r": costs["ours"][0] / spent({**ours[0], "reference": {"cpu": 0.0}}, updates) - 1,
        "versions": {**peer[0]["versions"], **ours[0]["versions"]},
    }  # fmt: skip


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--regime", choices=[*common.LENGTHS], default="hh")
    parser.add_argument("--epoch", type=int, default=48, help="updates of the epoch that is counted")
    parser.add_argument("--steps", type=int, default=4, help="updates that are really made")
    parser.add_argument("--peers", type=int, default=2, help="runs of TRL that are really made, of the 8")


def main() -> None:
    args = common.options(__doc__ or "", add)
    with common.workshop() as made:
        cell = sweep(
            Path(made), args.regime, 8 if args.quick else args.epoch, 2 if args.quick else args.steps, args.peers
        )
    print(common.table(
        ["rows", "single run", "sweep of 8", "gain", "our reference passes s"],
        [[cell["regime"], f"{cell['single']:.2f}x", f"{cell['sweep']:.2f}x", f"{cell['gain']:.2f}x",
          " ".join(f"{s:.1f}" for s in cell["reference_seconds"]["ours"])]],
    ))  # fmt: skip
    common.save(f"reference{'-quick' if args.quick else ''}", [cell], cell["versions"], steps=args.steps)


if __name__ == "__main__":
    main()

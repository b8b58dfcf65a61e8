"""What a sweep costs: 8 runs over two objectives and four betas on the same rows, the reference pass included.

Ours scores the reference once into a store that all runs read. TRL at its best scores it anew in every run, because
its cache's key changes with the arguments (its second run is measured, not assumed; the others cost the same, so they
are counted by the mean of those measured). Both make one epoch; CPU seconds of reference pass and updates.
"""

from __future__ import annotations

from argparse import ArgumentParser
from itertools import product
from pathlib import Path

import common
import speed
from common import PAIRS, child

SWEEP = list(product(("dpo", "ipo"), (0.05, 0.1, 0.2, 0.5)))


def spent(told: dict, steps: int) -> float:
    """CPU seconds of the reference pass and `steps` updates, where the first update stands for one like the others."""
    usual = common.median(common.cpu(told["steps"]))
    return told["reference"]["cpu"] + steps * usual


def ours_words(objective: str, beta: float) -> dict[str, object]:
    """IPO's tau is TRL's beta; per_token is how TRL reads IPO."""
    if objective == "ipo":
        return {"objective": "ipo", "objective.tau": beta}
    return {"objective": objective, "objective.beta": beta}


def sweep(place: Path, regime: str, steps: int, peers: int) -> dict:
    mine, planned, source = speed.files(place, regime, 8192, steps)
    ours, peer = [], []
    for at, (objective, beta) in enumerate(SWEEP):
        ours.append(child("ours", speed.ours(place, 8192, mine, steps, **ours_words(objective, beta))))
        if at < peers:
            other, its = SWEEP[0] if at == 0 else SWEEP[-at]
            spec = speed.peer(place, 8192, planned, steps, "best", objective=other, beta=its)
            peer.append(child("peer", spec))
    costs = {"ours": [spent(told, steps) for told in ours], "best": [spent(told, steps) for told in peer]}
    usual = sum(costs["best"]) / len(costs["best"])
    single, whole = costs["best"][0] / costs["ours"][0], len(SWEEP) * usual / sum(costs["ours"])
    return {
        "regime": regime, "rows": source, "runs": len(SWEEP), "pairs": PAIRS * steps,
        "reference_seconds": {
            name: [told["reference"]["cpu"] for told in runs] for name, runs in (("ours", ours), ("best", peer))
        },
        "scored": [t["reference"]["scored"] for t in ours], "seconds": costs,
        "single": single, "sweep": whole, "gain": whole / single,
        "bound": "the gain is at most (1 + r) / (1 + r / runs), r = our reference pass over our updates",
        "r": costs["ours"][0] / spent({**ours[0], "reference": {"cpu": 0.0}}, steps) - 1,
        "versions": {**peer[0]["versions"], **ours[0]["versions"]},
    }  # fmt: skip


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--regime", choices=[*common.LENGTHS], default="hh")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--peers", type=int, default=2, help="runs of TRL that are really made, of the 8")


def main() -> None:
    args = common.options(__doc__ or "", add)
    with common.workshop() as made:
        cell = sweep(Path(made), args.regime, 2 if args.quick else args.steps, args.peers)
    print(common.table(
        ["rows", "single run", "sweep of 8", "gain", "our reference passes s"],
        [[cell["regime"], f"{cell['single']:.2f}x", f"{cell['sweep']:.2f}x", f"{cell['gain']:.2f}x",
          " ".join(f"{s:.1f}" for s in cell["reference_seconds"]["ours"])]],
    ))  # fmt: skip
    common.save(f"reference{'-quick' if args.quick else ''}", [cell], cell["versions"], steps=args.steps)


if __name__ == "__main__":
    main()

"""From the command to the end of the first update, and what of it is libraries: CPU seconds, in turn."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import common
import speed


def command(python: str, script: str, spec: dict, source: Path | str = "") -> float:
    """CPU seconds of one whole child process. source: what it imports preftune from."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, **common.QUIET, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
    done = subprocess.run([python, script, json.dumps(spec)], capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    args = common.options(__doc__ or "")
    repeat = 1 if args.quick else 3
    found: dict[str, list[float]] = {"ours": [], "best": []}
    updates: dict[str, list[float]] = {"ours": [], "best": []}
    with common.workshop() as made:
        place = Path(made)
        mine, planned, source = speed.files(place, "hh", 8192, 1)
        for at in range(repeat):
            store = {"reference.store": place / f"store-{at}"}  # the reference is scored each time
            told = common.child("ours", spec := speed.ours(place, 8192, mine, 1, **store))
            updates["ours"].append(told["steps"][0]["cpu"] + told["reference"]["cpu"])
            store = {"reference.store": place / f"again-{at}"}
            spec = speed.ours(place, 8192, mine, 1, **store)
            found["ours"].append(
                command(sys.executable, str(common.HERE / "ours.py"), spec, common.HERE.parent / "src")
            )
            spec = speed.peer(place, 8192, planned, 1, "best")
            told = common.child("peer", spec)
            updates["best"].append(told["steps"][0]["cpu"] + told["reference"]["cpu"])
            found["best"].append(command(common.PEERS, str(common.HERE / "peer.py"), spec))
    cells = [{"rows": source, "seconds": {k: common.median(v) for k, v in found.items()},
              "of_it_training": {k: common.median(v) for k, v in updates.items()}}]  # fmt: skip
    print(common.table(
        ["", "whole command s", "reference and first update s", "the rest s"],
        [[name, whole := cells[0]["seconds"][name], part := cells[0]["of_it_training"][name], whole - part]
         for name in ("ours", "best")],
    ))  # fmt: skip
    common.save(f"startup{'-quick' if args.quick else ''}", cells, told["versions"])


if __name__ == "__main__":
    main()

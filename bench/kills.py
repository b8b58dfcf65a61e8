"""Kill a real run again and again; show that it ends with the bits of a run that nobody disturbed.

    python bench/kills.py MODEL PAIRS --kills 20

One run is done in peace. Then fresh runs of the same words are killed with SIGKILL up to 5 times each, half of them at
a moment drawn from the run's whole life, half while it scores the reference, writes a checkpoint or exports the model.
After each kill the same command goes on with --resume; now and then it gets SIGTERM, and has to stop with code 75.
A finished run must equal the one in peace: the bytes of its model, and every number of its metrics and evaluations
but the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from preftune.files import digest, read_lines

A_LIFE = 5  # kills before a run may end
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
SIGNS: dict[str, Callable[[Path, int], bool]] = {  # what is seen from outside while process `pid` does a thing
    "reference": lambda out, pid: (out / ".lock").exists() and not (out / "metrics.jsonl").exists(),
    "checkpoint": lambda out, pid: any((out / "checkpoints").glob(f".t*-{pid}-step-*")),
    "export": lambda out, pid: any(out.glob(f".t*-{pid}-model")),
}


def start(out: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """The run in `out` as a process of its own, with a reference store of its own beside it."""
    command = [sys.executable, "-m", "preftune", "train", *words, f"out={out}", "--resume"]
    env = {**os.environ, **QUIET, "PREFTUNE_STORE": str(out) + "-store"}
    with Path(f"{out}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=env)


def stage(out: Path, pid: int) -> str:
    """What the run was at, from what it left on the disk."""
    found = [name for name in ("checkpoint", "export") if SIGNS[name](out, pid)]
    if found:
        return found[0]
    if (out / "model").exists():
        return "after the export"
    if any(out.glob("checkpoints/step-*")) or read_lines(out / "metrics.jsonl"):
        return "training"
    return "reference" if any(Path(str(out) + "-store").rglob("*.safetensors")) else "before the first step"


def strike(out: Path, words: list[str], life: float, rng: random.Random, number: int) -> str:
    """Start the run and kill it once. Returns what it was at, or "finished first"."""
    process, began = start(out, words), time.monotonic()
    sign = rng.choice(sorted(SIGNS)) if number % 2 else ""
    moment = rng.uniform(0, life)
    while process.poll() is None:
        if SIGNS[sign](out, process.pid) if sign else time.monotonic() - began > moment:
            time.sleep(rng.uniform(0, 3.0 if sign == "reference" else 0.02) if sign else 0)
            process.kill()
            break
        time.sleep(0.0005)
    code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"the run ended with code {code}; see {out}.log")
    return stage(out, process.pid) if code else "finished first"


def ask(out: Path, words: list[str], life: float, rng: random.Random) -> tuple[int, float]:
    """Start the run, wait until it listens, ask it to stop at some moment: (exit code, seconds that it took)."""
    log = Path(f"{out}.log")
    told = log.stat().st_size if log.exists() else 0
    process = start(out, words)
    while process.poll() is None and b"reading rows" not in log.read_bytes()[told:]:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.6) * life)
    process.terminate()
    asked = time.monotonic()
    return process.wait(), time.monotonic() - asked


def finish(out: Path, words: list[str]) -> float:
    """Let the run end. Returns its seconds."""
    began, code = time.monotonic(), start(out, words).wait()
    if code:
        raise SystemExit(f"the run ended with code {code}; see {out}.log")
    return time.monotonic() - began


def told(out: Path) -> dict[str, object]:
    """All that has to be equal."""
    lines = {
        name: [{key: value for key, value in line.items() if key != "seconds"} for line in read_lines(out / name)]
        for name in ("metrics.jsonl", "evaluations.jsonl", "evaluation_rows.jsonl")
    }
    return {"model.safetensors": digest(out / "model" / "model.safetensors"), **lines}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--terms", type=int, default=5, help="times that SIGTERM is sent instead")
    parser.add_argument("--rows", type=int, default=200, help="rows of PAIRS that are used")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--words", nargs="*", default=[], help="more key=value for the run")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    place, rng = Path(tempfile.mkdtemp(prefix="kills-")), random.Random(given.seed)
    rows = place / "rows.jsonl"
    with given.pairs.open() as lines:
        rows.write_text("".join(islice(lines, given.rows)))
    words = [f"model.path={given.model}", f"data.train={rows}", "data.holdout=0.1", f"optim.steps={given.steps}",
             "optim.lr=1e-4", "batch.rows=2", "batch.tokens=4096", "save.every=2", "evaluate.every=10",
             *given.words]  # fmt: skip
    life = finish(place / "peace", words)
    expected, found, wrong = told(place / "peace"), Counter(), 0
    print(f"a run in peace: {life:.0f} s, {given.steps} steps; in {place}", flush=True)
    for kind, count in (("kill", given.kills), ("term", given.terms)):
        left, lives = count, 0
        while left:
            out, lives = place / f"{kind}-{lives}", lives + 1
            for _ in range(min(A_LIFE, left)):
                if kind == "kill":
                    at = strike(out, words, life, rng, left)
                else:
                    code, took = ask(out, words, life, rng)
                    at = f"code {code}" if code else "finished first"
                    print(f"  SIGTERM: code {code}, {took:.1f} s to stop", flush=True)
                found[f"{kind}: {at}"] += 1
                left -= at != "finished first"
                if at in ("finished first", "after the export"):
                    break
            finish(out, words)
            differ = [name for name, value in told(out).items() if value != expected[name]]
            wrong += bool(differ)
            print(f"{out.name}: {', '.join(differ) + ' DIFFER' if differ else 'equal'}", flush=True)
            if not differ:
                shutil.rmtree(out)
    print(json.dumps(dict(found.most_common()), indent=1))
    print(f"{wrong} runs differ" if wrong else "every run ended with the same bits")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

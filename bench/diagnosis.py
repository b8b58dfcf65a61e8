"""Which findings planted failures raise: a line for each failure and seed, and over clean seeds.

    python bench/diagnosis.py [seeds] [clean seeds]

Takes about five seconds of one core a run.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import planted

from preftune.diagnosis import diagnose


def main(seeds: int = 2, clean: int = 10) -> None:
    """Run everything and print a Markdown table."""
    cases = {name: (failure, seeds) for name, failure in (planted.FAILURES | planted.MORE).items()}
    print("| planted | seed | held-out accuracy | named first | right | findings |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        models = planted.models(Path(folder), all_of_them=True)
        for name, (failure, count) in ({"nothing": (planted.CLEAN, clean)} | cases).items():
            for seed in range(count):
                record = planted.run(failure, models, Path(folder) / f"{name} {seed}", seed)
                codes = [finding.code for finding in diagnose(record)]
                first = codes[0] if codes else ""
                right = first in failure.codes if failure.codes else not codes
                accuracy = record.end["accuracy"] or 0.0
                cells = name, seed, f"{accuracy:.2f}", first, "yes" if right else "no", ", ".join(codes)
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""Which findings planted failures raise: a line for each failure, and one for clean seeds.

    python bench/diagnosis.py [seeds] [clean seeds] [first seed] [folder]

Takes about four seconds of one core a run. Thresholds were chosen on seeds below 100, so judge them by others. Records
stay in the folder where there is one, and are diagnosed again and not trained again.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import common
import planted

from preftune import files
from preftune.diagnosis import diagnose
from preftune.record.reader import Record

Cell = dict[str, object]
HEAD = ["kind", "strength", "runs", "right", "instead"]


def record_of(place: Path, failure: planted.Planted, models: dict[str, Path], seed: int) -> Record:
    """The record of a run with this failure, trained unless the folder has it to its end."""
    run = place / "run"
    if not (run / "run.toml").exists() or not Record.open(run).end:
        shutil.rmtree(place, ignore_errors=True)
        planted.run(failure, models, place, seed)
    return Record.open(run)


def models_in(folder: Path) -> dict[str, Path]:
    """The folders of the models that failures begin from, taught unless they are there."""
    paths = folder / "models.json"
    if not paths.exists():
        models = planted.models(folder / "models", all_of_them=True)
        files.write_json(paths, {name: str(path) for name, path in models.items()})
    return {name: Path(path) for name, path in json.loads(paths.read_text()).items()}


def measure(name: str, failure: planted.Planted, records: list[Record], first: int) -> Cell:
    """How often the right cause is named first, what is named in its stead, and all findings, seed by seed."""
    codes = [[finding.code for finding in diagnose(record)] for record in records]
    firsts = [found[0] if found else "" for found in codes]
    right = [code in failure.codes if failure.codes else not code for code in firsts]
    kind, _, strength = name.partition(", ")
    return {
        "kind": kind, "strength": strength, "runs": len(records), "right": sum(right),
        "instead": ", ".join(sorted({code or "nothing" for code, ok in zip(firsts, right, strict=True) if not ok})),
        "first seed": first, "codes": codes,
        "accuracy": [round(record.end["accuracy"] or 0.0, 3) for record in records],
    }  # fmt: skip


def main(seeds: int = 2, clean: int = 10, first: int = 100, kept: str = "") -> None:
    """Run everything, print a table and save it."""
    cases = {"nothing": planted.CLEAN, **planted.FAILURES, **planted.MORE}
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(kept or temporary)
        models = models_in(folder)
        for name, failure in cases.items():
            count = seeds if failure.codes else clean
            places = {seed: folder / f"{name} {seed}" for seed in range(first, first + count)}
            records = [record_of(place, failure, models, seed) for seed, place in places.items()]
            cells.append(measure(name, failure, records, first))
            print(f"{name}: {cells[-1]['right']} of {count}", flush=True)
    lines = [[cell[key] for key in HEAD] for cell in cells]
    print(common.table(HEAD, lines))
    common.save("diagnosis", cells, {name: version(name) for name in ("torch", "transformers", "numpy")})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:])

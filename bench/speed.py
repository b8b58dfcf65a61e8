"""CPU seconds of one update of 8 pairs: ours with a stored reference, TRL as shipped, TRL at its best on a CPU."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import common
from common import PAIRS, child, cpu, median, ratios, same

CASES = [("long-prompt", 8192), ("hh", 8192), ("ultrafeedback", 8192), ("hh", 151936)]
LR = 1e-6


def ours(place: Path, vocab: int, rows: Path, steps: int, **words: object) -> dict:
    """The spec of one run of ours."""
    run = {
        "model.path": common.model_folder(place, vocab), "data.train": rows, "data.max_tokens": common.MAX_TOKENS,
        "batch.rows": PAIRS, "optim.steps": steps, "optim.lr": LR, "optim.schedule": "constant", "optim.warmup": 0,
        "out": place / "run", "reference": "stored", "reference.store": place / "store", "device": "cpu", **words,
    }  # fmt: skip
    return {"model": str(run["model.path"]), "run": {key: str(value) for key, value in run.items()}}


def peer(place: Path, vocab: int, rows: Path, steps: int, variant: str, dtype: str = "float32", **more: object) -> dict:
    """The spec of one run of the peer."""
    return {"model": str(common.model_folder(place, vocab)), "data": str(rows), "steps": steps, "lr": LR,
            "variant": variant, "dtype": dtype, **more}  # fmt: skip


def files(place: Path, regime: str, vocab: int, steps: int) -> tuple[Path, Path, str]:
    """Rows for ours, the same in planned order for the peer, and where they come from."""
    rows, source = common.rows_of(regime, vocab, PAIRS * steps)
    mine = common.write_rows(place / f"{regime}-{vocab}.jsonl", rows)
    return mine, common.write_rows(place / f"{regime}-{vocab}-planned.jsonl", common.planned(rows, 0)), source


def case(place: Path, regime: str, vocab: int, steps: int, shipped: int, repeat: int, dtype: str) -> dict:
    """One cell of the table. shipped: updates given to the slowest of the three."""
    mine, planned, source = files(place, regime, vocab, steps)
    times: dict[str, list[float]] = {"ours": [], "best": [], "shipped": []}
    over: dict[str, list[float]] = {"best": [], "shipped": []}
    for _ in range(repeat):
        one = child("ours", ours(place, vocab, mine, steps, **{"model.compute": dtype}))
        best = child("peer", peer(place, vocab, planned, steps, "best", dtype))
        as_is = child("peer", peer(place, vocab, planned, shipped, "shipped", dtype))
        for name, told in (("ours", one), ("best", best), ("shipped", as_is)):
            times[name] += cpu(told["steps"])
        over["best"] += ratios(best["steps"], one["steps"])
        over["shipped"] += ratios(as_is["steps"], one["steps"])
    return {
        "regime": regime, "vocab": vocab, "dtype": dtype, "rows": source,
        "seconds": {name: median(found) for name, found in times.items()},
        "speed": {name: median(found) for name, found in over.items()},
        "apart": {"best": same(one, best), "shipped": same(one, as_is)},
        "first_loss": one["steps"][0]["loss"],
        "tokens_computed": one["steps"][-1]["tokens_computed"], "tokens_shared": one["steps"][-1]["tokens_shared"],
        "versions": {**best["versions"], **one["versions"]},
    }  # fmt: skip


def show(cells: list[dict]) -> None:
    print(common.table(
        ["rows", "vocabulary", "type", "ours s", "TRL at its best s", "TRL as shipped s",
         "against best", "against shipped", "loss apart"],
        [[c["regime"], c["vocab"], c["dtype"], *(c["seconds"][k] for k in ("ours", "best", "shipped")),
          f"{c['speed']['best']:.2f}x", f"{c['speed']['shipped']:.2f}x",
          f"{max(a['loss'] for a in c['apart'].values()):.0e}"] for c in cells],
    ))  # fmt: skip


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--regime", choices=[*common.LENGTHS, "ukp"])
    parser.add_argument("--vocab", type=int, choices=[*common.SHAPES])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=5, help="updates of ours and of TRL at its best")
    parser.add_argument("--shipped", type=int, default=4, help="updates of TRL as shipped, the slowest")
    parser.add_argument("--repeat", type=int, default=1)


def main() -> None:
    args = common.options(__doc__ or "", add)
    cases = [c for c in CASES if args.regime in (None, c[0]) and args.vocab in (None, c[1])]
    steps, shipped = (2, 2) if args.quick else (args.steps, args.shipped)
    cells = []
    with common.workshop() as made:
        for regime, vocab in [("hh", 8192)] if args.quick else cases or [(args.regime, args.vocab or 8192)]:
            cells.append(case(Path(made), regime, vocab, steps, shipped, args.repeat, args.dtype))
            show(cells)
            part = "" if args.regime is None and args.vocab is None else f"-{regime}-{vocab}"
            name = f"speed-{args.dtype}{part}{'-quick' if args.quick else ''}"
            common.save(name, cells, cells[-1]["versions"], steps=steps, steps_shipped=shipped)


if __name__ == "__main__":
    main()

"""How the cost of ours grows: with rows, tokens, K and vocabulary; and what a ranking costs against its pairs.

Straight lines are what sharing promises: the time of an update over its distinct tokens stays as it is. A ranking of
K = 8 is 28 pairs: as one ranking each response is computed once; as pairs one by one it is computed seven times.
"""

from __future__ import annotations

import json
from pathlib import Path

import common
import numpy as np
import speed
from common import SHARED, child, cpu, median

FACTORS = {"rows": (4, 8, 16, 32), "tokens": (64, 128, 256, 512), "K": (2, 4, 8), "vocabulary": (8192, 151936)}
STEPS = 3


def words(rng: np.random.Generator, count: int, vocab: int) -> str:
    return " " + " ".join(f"w{i}" for i in rng.integers(3, vocab, count))


def rows(count: int, prompt: int, response: int, k: int, vocab: int) -> list[dict]:
    """Rows of equal lengths: pairs where k is 2, else rankings of k responses."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        given = [words(rng, response, vocab) for _ in range(k)]
        row: dict[str, object] = {"prompt": words(rng, prompt, vocab)[1:]}
        ranked = {"responses": given, "ranks": list(range(1, k + 1))}
        row |= {"chosen": given[0], "rejected": given[1]} if k == 2 else ranked
        found.append(row)
    return found


def point(place: Path, factor: str, value: int) -> dict:
    """One measurement, all other factors at their usual values."""
    at = {"rows": 8, "tokens": 128, "K": 2, "vocabulary": 8192} | {factor: value}
    made = rows(at["rows"] * STEPS, at["tokens"], at["tokens"] // 2, at["K"], at["vocabulary"])
    data = common.write_rows(place / "rows.jsonl", made)
    spec = speed.ours(place, at["vocabulary"], data, STEPS, **{"batch.rows": at["rows"], "batch.tokens": 8192})
    told = child("ours", spec)
    seconds, tokens = median(cpu(told["steps"])), told["steps"][-1]["tokens_computed"]
    return {"factor": factor, "value": value, "seconds": seconds, "tokens": tokens,
            "microseconds_a_token": 1e6 * seconds / tokens, "versions": told["versions"]}  # fmt: skip


def rankings(place: Path, count: int, vocab: int = 8192) -> dict:
    """Real rankings of 8: as rankings, and as pairs one by one in ours (a pack a pair) and in TRL at its best."""
    file = SHARED / "ranked" / "ukp_ranked.train.jsonl"
    as_rankings = rows(count, 30, 60, 8, vocab)
    if file.exists():
        raw = [json.loads(line) for line in file.read_text().splitlines()[:count]]
        as_rankings = [
            {"prompt": common.hashed(common.spoken(r["prompt"]), vocab), "ranks": r["ranks"],
             "responses": [" " + common.hashed(common.spoken(text), vocab) for text in r["responses"]]} for r in raw
        ]  # fmt: skip
    pairs = []
    for row in as_rankings:
        order = np.argsort(row["ranks"], kind="stable")
        pairs += [{"prompt": row["prompt"], "chosen": row["responses"][a], "rejected": row["responses"][b]}
                  for i, a in enumerate(order) for b in order[i + 1 :]]  # fmt: skip
    each = len(pairs) // count
    whole = common.write_rows(place / "rankings.jsonl", as_rankings)
    single = common.write_rows(place / "pairs.jsonl", pairs)
    one = child("ours", speed.ours(place, vocab, whole, count, **{"batch.rows": 1}))
    alone = child("ours", speed.ours(place, vocab, single, count, **{"batch.rows": each, "batch.tokens": 1}))
    best = child("peer", speed.peer(place, vocab, single, count, "best", more={"gradient_accumulation_steps": each}))
    times = {name: sum(cpu(told["steps"])) for name, told in (("ranking", one), ("alone", alone), ("best", best))}
    return {"K": 8, "pairs": each, "rankings": count - 1, "seconds": times,
            "against_ours_one_by_one": times["alone"] / times["ranking"],
            "against_best": times["best"] / times["ranking"],
            "versions": {**best["versions"], **one["versions"]}}  # fmt: skip


def main() -> None:
    args = common.options(__doc__ or "")
    factors = {"rows": (4, 8)} if args.quick else FACTORS
    with common.workshop() as made:
        place = Path(made)
        found = rankings(place, 2 if args.quick else 4)
        points = [point(place, factor, value) for factor, values in factors.items() for value in values]
    print(common.table(
        ["factor", "value", "seconds an update", "distinct tokens", "microseconds a token"],
        [[p["factor"], p["value"], p["seconds"], p["tokens"], p["microseconds_a_token"]] for p in points],
    ))  # fmt: skip
    print(f"a ranking of 8 against its {found['pairs']} pairs one by one: {found['against_ours_one_by_one']:.1f}x in "
          f"ours, {found['against_best']:.1f}x against TRL at its best")  # fmt: skip
    common.save(f"scale{'-quick' if args.quick else ''}", points, found["versions"], rankings=found)


if __name__ == "__main__":
    main()

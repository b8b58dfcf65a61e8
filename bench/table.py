"""bench/results/*.json -> the tables of the README and of docs/rlhf.md, between the two marks of each.

What was not measured is not shown.
"""

from __future__ import annotations

import json
import sys

import common

from preftune import files

BEGIN, END = "<!-- bench: begin (made by bench/table.py) -->", "<!-- bench: end -->"
SHOWN = ("speed-", "memory", "adapter", "ukp", "scale", "reference", "online", "rollout", "limit-")
NAMES = {
    "long-prompt": "long prompts, short responses (400/40 tokens)",
    "hh": "dialogues (real rows of hh_harmless)",
    "ultrafeedback": "long responses (200/350 tokens)",
}


def result(name: str) -> dict | None:
    """A result that `make bench` left; quick tries are never shown."""
    path = common.RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def joined(pair: dict[str, float]) -> str:
    """As shipped / at its best."""
    return f"{pair['shipped']:.1f}x / {pair['best']:.1f}x"


def lines() -> list[list[str]]:
    """Work, speed and memory against TRL as shipped and at its best."""
    found = []
    memory = {(c["regime"], c["vocab"]): c for c in (result("memory") or {"cells": []})["cells"]}
    for dtype in ("float32", "bfloat16"):
        for cell in (result(f"speed-{dtype}") or {"cells": []})["cells"]:
            space = memory.get((cell["regime"], cell["vocab"])) if dtype == "float32" else None
            shown = joined(space["over"]["ours"]) if space else ""
            what = f"{NAMES[cell['regime']]}, vocabulary {cell['vocab']:,}, {dtype}"
            found.append([what, joined(cell["speed"]), shown])
    for cell in (result("adapter") or {"cells": []})["cells"]:
        what = f"{NAMES[cell['regime']]}, an adapter of rank {cell['rank']}, vocabulary {cell['vocab']:,}, float32"
        found.append([what, joined(cell["speed"]), joined(cell["memory"])])
    if (ukp := result("ukp")) is not None:
        cell = ukp["cells"][0]
        found.append([f"UKP, one epoch of {cell['pairs']:,} pairs with its reference", joined(cell["speed"]), ""])
    if (scale := result("scale")) is not None:
        cell = scale["rankings"]
        what = f"rankings of {cell['K']} as all {cell['pairs']} pairs"
        over = f"{cell['against_ours_one_by_one']:.1f}x ours one by one / {cell['against_best']:.1f}x"
        found.append([what, over, ""])
    if (sweep := result("reference")) is not None:
        cell = sweep["cells"][0]
        found.append([f"sweep of {cell['runs']} runs with its reference", f"- / {cell['sweep']:.1f}x", ""])
    for cell in (result("online") or {"cells": []})["cells"]:
        for way, ratio in cell["over"].items():
            what = f"a whole step of {way}, {cell['model']}, {cell['rows']} prompts of {cell['prompt']} tokens, K = 8"
            found.append([what, f"- / {ratio['step']:.1f}x", f"- / {1 / ratio['mib']:.1f}x"])
    for cell in (result("rollout") or {"cells": []})["cells"]:
        what = f"{cell['rows']} responses drawn, {cell['model']}, prompts of {cell['prompt']} tokens (`generate`)"
        found.append([what, f"- / {cell['ratio']:.1f}x", ""])
    return found


def render() -> str:
    """The block between the marks."""
    paths = [
        path for name in SHOWN for path in sorted(common.RESULTS.glob(f"{name}*.json")) if "quick" not in path.name
    ]
    results = [json.loads(path.read_text()) for path in paths]
    every = [one for one in results if "versions" in one]  # of others the docs tell
    head = ["updates of 8 pairs", "times faster than TRL, as shipped / at its best", "times less peak memory, likewise"]
    text = common.table(head, lines())
    about: dict[tuple[str, str, int], dict[str, str]] = {}
    for one in every:
        about.setdefault((one["date"], one["device"], one["threads"]), {}).update(one["versions"])
    for (date, device, threads), versions in about.items():
        told = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        text += f"\n\n{date}, {device}, {threads} thread, CPU seconds; {told}."
    text += "".join(f"\n\n{one['benchmark']}: {one['note']}" for one in every if "note" in one)
    engines = {cell.get("versions", {}).get("engine") for one in every for cell in one.get("cells", ())} - {None}
    if len(engines) > 1:
        text += f"\n\nThese cells come from {len(engines)} states of the source; `make bench` measures them anew."
    for limit in filter(None, (result("limit-float32"), result("limit-bfloat16"))):
        shares = ", ".join(f"{c['share_of_peak']:.0%} ({c['regime']})" for c in limit["cells"])
        text += f"\n\nOf the processor's matmul peak, {limit['cells'][0]['dtype']}: {shares}."
    return text


def online() -> str:
    """CPU seconds of whole steps of runs that draw, and TRL's."""
    lines = []
    for cell in (result("online") or {"cells": []})["cells"]:
        what = f"{cell['model']}, {cell['rows']} prompts of {cell['prompt']} tokens"
        for way, took in cell["ways"].items():
            if not way.startswith("ours "):
                continue
            name, over = way.removeprefix("ours "), cell["over"].get(way.removeprefix("ours "))
            theirs = min(
                (t["step"] for peer, t in cell["ways"].items() if peer.startswith(f"TRL {name}")), default=None
            )
            columns = [f"{took[part]:.2f}" for part in ("step", "rollout", "scoring", "update")]
            beside = [f"{theirs:.2f}", f"{over['step']:.1f}", f"{over['mib']:.2f}"] if theirs and over else ["-"] * 3
            lines.append([f"{name}, {what}", *columns, *beside])
    head = ["work", "step", "drawing", "scoring", "update", "TRL's step", "times faster", "share of memory"]
    return common.table(head, lines)


def put(file: str, block: str) -> None:
    """Write a block between the marks of a page."""
    path = common.HERE.parent / file
    text = path.read_text()
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        files.write(path, f"{before}{BEGIN}\n{block}\n{END}{rest.partition(END)[2]}")
    else:
        print(f"{file} has no marked block; nothing was written.", file=sys.stderr)


def main() -> None:
    print(block := render())
    put("README.md", block)
    put("docs/rlhf.md", online())


if __name__ == "__main__":
    main()

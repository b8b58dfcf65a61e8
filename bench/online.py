"""A whole online step: ours beside TRL's RLOO and GRPO, split into drawing, scoring and update.

Both take the same prompts in the same order, K = 8, the same forced lengths, beta 0.05 with the reference as a second
model, AdamW and fp32, on one thread. TRL is tried with the micro-batches of `CELLS`, without checkpointing, and ours is
set against the best of them: for time the one of the fastest step, for memory the one of the smallest peak. The first
step of each run is left out. Memory is what a process takes at its highest above one that has loaded the libraries and
no model, less the weights of the policy.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from pathlib import Path

import common
import numpy as np
from common import median
from rollout import LONGEST, MEAN, RESPONSES, model

from preftune.pack.plan import make_plan

PARTS = ("step", "rollout", "scoring", "update")
CELLS = {  # model, prompts of a step, tokens of a prompt -> TRL's trainers and micro-batches that are tried
    ("stories260K", 8, 64): (("rloo", "grpo"), (8, 64)),
    ("stories260K", 32, 64): (("rloo",), (8,)),
    ("10M", 2, 256): (("rloo",), (8,)),
}
WAYS = ("rloo", "grpo", "ppo")


def folder(root: Path, name: str) -> Path:
    """The model with a tokenizer whose words are w3, w4, ...: one word, one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = root / name
    if not path.exists():
        module = model(name)
        module.save_pretrained(path)
        vocab = module.config.vocab_size
        words = {"<pad>": 0, "<begin>": 1, "<end>": 2, **{f"w{i}": i for i in range(3, vocab)}}
        made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(
            tokenizer_object=made, pad_token="<pad>", eos_token="<end>", model_max_length=2048,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(path)  # fmt: skip
    return path


def workload(path: Path, rows: int, tokens: int, steps: int) -> dict:
    """Prompts in the order in which our plan meets them, and how long each response is."""
    vocab = json.loads((path / "config.json").read_text())["vocab_size"]
    rng, total = np.random.default_rng(0), rows * steps
    prompts = rng.integers(3, vocab, (total, tokens))
    lengths = np.minimum(LONGEST, 1 + rng.exponential(MEAN, (total, RESPONSES)).astype(int))
    lengths[:, 0] = np.maximum(lengths[:, 0], 2)
    return {"prompts": prompts.tolist(), "lengths": lengths.tolist(), "rows": rows, "steps": steps}


def in_order(work: dict) -> dict:
    """The workload as a trainer that does not shuffle meets it."""
    plan = make_plan([1] * len(work["prompts"]), rows=work["rows"], tokens=len(work["prompts"]), seed=0,
                     steps=work["steps"])  # fmt: skip
    order = [i for step in plan.steps for i in step.order]
    return {**work, **{name: [work[name][i] for i in order] for name in ("prompts", "lengths")}}


def figures(told: dict, weights: int) -> dict[str, float]:
    """CPU seconds of each part, the median over steps, and MiB at the highest."""
    peak = told["steps"][-1]["peak"]
    return {
        **{part: median([step[part] for step in told["steps"]]) for part in PARTS},
        "mib": (peak - told["empty"] - weights) / 2**20,
        "process_mib": peak / 2**20,
    }


def peer(spec: dict) -> dict:
    """What TRL measured on a spec, in its own environment."""
    return common.process([common.PEERS, str(common.HERE / "online_peer.py"), json.dumps(spec)], {"PYTHONPATH": ""})


def ours(spec: dict) -> dict:
    source = {"PYTHONPATH": str(common.HERE.parent / "src")}
    return common.process([sys.executable, str(common.HERE / "online_ours.py"), json.dumps(spec)], source)


def measure(place: Path, name: str, rows: int, tokens: int, steps: int, *, alone: bool) -> dict:
    """One cell: seconds and memory of every way, and TRL's best over ours."""
    path = folder(place, name)
    weights = (path / "model.safetensors").stat().st_size
    work = workload(path, rows, tokens, steps)
    spec = {"model": str(path), "out": str(place / "run"), "beta": 0.05, "lr": 1e-6}
    found, versions = {}, {}
    for way in WAYS:
        told = ours({**spec, **work, "objective": way})
        found[f"ours {way}"], versions = figures(told, weights), {**versions, **told["versions"]}
        print(f"ours {way}: {json.dumps(found[f'ours {way}'])}", file=sys.stderr)
    trainers, sizes = ((), ()) if alone else CELLS[name, rows, tokens]
    for way in trainers:
        for micro in sizes:
            told = peer({**spec, **in_order(work), "objective": way, "micro": micro})
            key = f"TRL {way}, {micro} at once"
            found[key], versions = figures(told, weights), {**versions, **told["versions"]}
            print(f"{key}: {json.dumps(found[key])}", file=sys.stderr)
    drawn = sum(map(sum, work["lengths"])) / steps
    cell = {"model": name, "rows": rows, "prompt": tokens, "drawn": drawn, "weights_mib": weights / 2**20}
    return {**cell, "ways": found, "over": over(found), "ppo_over_rloo": found["ours ppo"]["step"] /
            found["ours rloo"]["step"], "versions": versions}  # fmt: skip


def over(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Of each objective: TRL's best setting over ours; of memory, ours over TRL's smallest."""
    best = {}
    for way in WAYS[:2]:
        theirs = [numbers for name, numbers in found.items() if name.startswith(f"TRL {way}")]
        if theirs:
            mine, fastest = found[f"ours {way}"], min(theirs, key=lambda numbers: numbers["step"])
            best[way] = {part: fastest[part] / mine[part] for part in PARTS}
            best[way] |= {name: mine[name] / min(t[name] for t in theirs) for name in ("mib", "process_mib")}
    return best


def show(cells: list[dict]) -> None:
    lines = []
    for cell in cells:
        for way, numbers in cell["ways"].items():
            what = f"{cell['model']}, {cell['rows']} x {RESPONSES}, prompts of {cell['prompt']}"
            lines.append([what, way, *(numbers[part] for part in PARTS), f"{numbers['mib']:.0f}"])
        for way, ratio in cell["over"].items():
            what = f"**{cell['model']}, {way}: TRL's fastest over ours; memory: ours over TRL's smallest**"
            lines.append([what, "", *(ratio[part] for part in PARTS), ratio["mib"]])
        lines.append([f"**{cell['model']}: our ppo over our rloo**", "", cell["ppo_over_rloo"], "", "", "", ""])
    print(common.table(["work", "way", *(f"{part}, s" for part in PARTS), "MiB"], lines))


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="ours only, where there is no environment of TRL's")
    parser.add_argument("--cell", type=int, choices=range(len(CELLS)), help="one of the cells")


def main() -> None:
    args = common.options(__doc__ or "", add)
    chosen = [list(CELLS)[args.cell]] if args.cell is not None else list(CELLS)
    part = "" if args.cell is None else f"-{args.cell}"
    cells = []
    with common.workshop() as made:
        for name, rows, tokens in chosen[: 1 if args.quick else None]:
            steps = 2 if args.quick else args.steps
            cells.append(measure(Path(made), name, rows, tokens, steps, alone=args.alone))
            show(cells)
            common.save(f"online{part}{'-quick' if args.quick or args.alone else ''}", cells, cells[-1]["versions"])


if __name__ == "__main__":
    main()

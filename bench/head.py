"""Log-probabilities of given tokens and their gradients: ours in each of its ways beside torch's, CPU s and memory.

Each way runs in a child process: the median of three forward and backward passes after a first one, and the peak of
resident memory above the inputs, weights and their gradients. torch's `linear_cross_entropy` gives one number a token
(reduction "none"), as objectives need; how it cuts the work is `auto`, or `batch` for the rows.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser

import common
import torch
from common import RETURNING, median
from meter import forget, memory
from torch.nn import functional

WAYS = ("ours, kept", "ours, made again", "ours, head frozen", "torch, whole", "torch, in chunks")
SIZES = {8192: 384, 151936: 256}  # vocabulary -> width, as of the other benchmarks' models


def work(way: str, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(rows,): log-probabilities of the targets."""
    from preftune.model import logp
    from preftune.model.heads import LanguageHead

    if way.startswith("torch"):
        options = None if "whole" in way else torch.nn.LinearCrossEntropyOptions(chunking_method="auto")
        return -functional.linear_cross_entropy(hidden, weight, target, reduction="none", options=options)
    logp.KEEP["cpu"] = 2**40 if "kept" in way else 0
    return logp.head_logp(hidden, LanguageHead(weight), target)


def measure(way: str, rows: int, vocab: int, width: int) -> dict[str, float]:
    """CPU seconds and MiB of one way, and the sums that show that all give the same."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = (torch.randn(vocab, width) / width**0.5).requires_grad_("frozen" not in way)
    target, upstream = torch.randint(vocab, (rows,)), torch.randn(rows)
    spent = []
    for _ in range(4):
        hidden.grad = weight.grad = None
        began, held = time.process_time(), memory("VmRSS")
        forget()
        found = work(way, hidden, weight, target)
        (found * upstream).sum().backward()
        spent.append(time.process_time() - began)
    mib = (memory("VmHWM") - held) / 2**20
    return {"seconds": median(spent[1:]), "mib": mib, "logp": float(found.mean()), "grad": float(hidden.grad.norm())}


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--way", choices=WAYS, help="measure one way in this process, and print JSON")
    parser.add_argument("--vocab", type=int, choices=[*SIZES], default=8192)


def main() -> None:
    args = common.options(__doc__ or "", add)
    if args.way:
        print(json.dumps(measure(args.way, args.rows, args.vocab, SIZES[args.vocab])))
        return
    cells = []
    for vocab in (8192,) if args.quick else SIZES:
        for way in WAYS:
            words = ["--way", way, "--rows", str(args.rows), "--vocab", str(vocab)]
            told = common.process([sys.executable, __file__, *words], RETURNING)
            cells.append({"vocab": vocab, "rows": args.rows, "way": way, **told})
    head = ["vocabulary", "rows", "way", "CPU s", "MiB above inputs", "mean log-probability", "gradient's norm"]
    print(
        common.table(head, [[c[k] for k in ("vocab", "rows", "way", "seconds", "mib", "logp", "grad")] for c in cells])
    )
    common.save(f"head{'-quick' if args.quick else ''}", cells, {"torch": torch.__version__})


if __name__ == "__main__":
    main()

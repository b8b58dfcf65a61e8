"""How close an update comes to what the processor can do, what is computed that no loss sees, and where to cut blocks.

Useful work: six FLOPs a weight of the body and a distinct token, six a weight of the head and a scored row; attention
counts two products forward and five backward over the pairs of rows that see each other. Norms, the reference and
anything recomputed count as nothing. The peak is the best of the matrix products of the model's own shapes. Two shares
of it: of what the distinct tokens ask for (body and head), and of what is computed (also attention, and of the last
layer only the rows that some loss sees).
"""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import speed
import torch

from preftune.config.load import load
from preftune.config.resolve import resolve
from preftune.model import attention, layout
from preftune.model.policy import Policy
from preftune.pack.batch import Batch, collate
from preftune.run.prepare import Prepared
from preftune.run.prepare import prepare as prepare_run
from preftune.training.checkpoint import State
from preftune.training.optimizer import adamw
from preftune.training.update import update

ROWS = (32, 48, 64, 96, 128)


def timed(work: Callable[[], object], repeat: int) -> float:
    """Fewest CPU seconds of a call."""
    found = []
    for _ in range(repeat):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def peak(dtype: torch.dtype, rows: int, shapes: list[tuple[int, int]], repeat: int = 7) -> float:
    """Best FLOP/s of large and of the model's own products, on one thread."""
    rates = []
    for inner, outer in [*shapes, (1024, 1024)]:
        x, w = torch.randn(rows, inner, dtype=dtype), torch.randn(outer, inner, dtype=dtype)
        rates.append(2 * rows * inner * outer / timed(lambda x=x, w=w: x @ w.T, repeat))
    return max(rates)


def policy_of(prepared: Prepared) -> Policy:
    return prepared.training.models.policy


def layer_weights(prepared: Prepared) -> tuple[int, int]:
    """Weights of all layers, and of the last one those that work a row by itself after keys and values."""
    layers = policy_of(prepared).module.base_model.layers
    matrices = {name: p.numel() for name, p in layers[-1].named_parameters() if p.dim() == 2}
    own = sum(n for name, n in matrices.items() if "k_proj" not in name and "v_proj" not in name)
    return sum(p.numel() for p in layers.parameters() if p.dim() == 2), own


def useful(prepared: Prepared, batch: Batch) -> dict[str, float]:
    """FLOPs of one pack's forward and backward pass, and rows of the last layer that no loss sees."""
    config = policy_of(prepared).module.config
    body, own = layer_weights(prepared)
    seen = int(np.unique(batch.source.numpy()).size)
    pairs = float((batch.trie.position + 1).sum())  # (query, key): a row sees its path
    width = config.num_attention_heads * config.head_dim
    return {
        "body": 6.0 * body * batch.tokens,
        "head": 6.0 * policy_of(prepared).head.weight.numel() * len(batch.target),
        "attention": 14.0 * pairs * width * config.num_hidden_layers,
        "unseen": 6.0 * own * (batch.tokens - seen),
        "rows": batch.tokens, "rows_unseen_in_last_layer": batch.tokens - seen,
    }  # fmt: skip


def prepare(place: Path, regime: str, vocab: int, dtype: str, steps: int) -> Prepared:
    """A run of ours up to its first update."""
    rows, _, _ = speed.files(place, regime, vocab, steps)
    spec = speed.ours(place, vocab, rows, steps, **{"model.compute": dtype})
    run = resolve(load(None, [f"{key}={value}" for key, value in spec["run"].items()]))
    return prepare_run(run)


def of_the_peak(prepared: Prepared, regime: str, dtype: str) -> dict:
    """One update after another: useful FLOPs over its CPU time and the peak."""
    (phase,) = prepared.training.source.phases(0)
    state = State(policy_of(prepared).weights, adamw(policy_of(prepared).weights, prepared.run.optim, seed=0))
    shares, computed, sums, shapes = [], [], [], []
    for layer in policy_of(prepared).module.base_model.layers[0].modules():
        if isinstance(layer, torch.nn.Linear):
            shapes.append((layer.in_features, layer.out_features))
    for at, step in enumerate(phase.plan.steps):
        batches = [collate([phase.groups[i] for i in pack]) for pack in step.packs]
        began = time.process_time()
        update(prepared.training, state, phase, step)
        spent = time.process_time() - began
        state.step += 1
        if at:
            flops = {key: sum(useful(prepared, b)[key] for b in batches) for key in useful(prepared, batches[0])}
            top = peak(getattr(torch, dtype), 1024, shapes)
            matmul = flops["body"] + flops["head"]
            shares.append(matmul / spent / top)
            computed.append((matmul + flops["attention"] - flops["unseen"]) / spent / top)
            sums.append({**flops, "seconds": spent, "peak_gflops": top / 1e9})
    last = sums[-1]
    return {
        "regime": regime, "dtype": dtype, "share_of_peak": common.median(shares),
        "share_computed": common.median(computed), "updates": sums,
        "unseen_share": last["unseen"] / (last["body"] + last["head"]),
        "unseen_rows_share": last["rows_unseen_in_last_layer"] / last["rows"],
    }  # fmt: skip


def blocks(prepared: Prepared, regime: str, repeat: int = 5) -> dict:
    """CPU milliseconds of attention in one layer, forward and backward, for blocks of so many rows."""
    (phase,) = prepared.training.source.phases(0)
    config = policy_of(prepared).module.config
    sizes = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    batch = collate([phase.groups[i] for i in phase.plan.steps[0].packs[0]])
    used, milliseconds = layout.BLOCK, {}
    for rows in ROWS:
        layout.BLOCK = rows
        cut = layout.Layout(batch.end, batch.position, batch.trie)
        inputs = [torch.randn(1, heads, batch.tokens, config.head_dim, requires_grad=True) for heads in sizes]
        shape = attention.Shape(config.head_dim**-0.5)
        work = lambda: attention.InBlocks.apply(*inputs, None, cut, shape).sum().backward()  # noqa: B023, E731
        milliseconds[str(rows)] = 1000 * timed(work, repeat)
    layout.BLOCK = used
    return {"regime": regime, "tokens": batch.tokens, "milliseconds": milliseconds, "used": used}


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=4)


def main() -> None:
    args = common.options(__doc__ or "", add)
    torch.set_num_threads(1)
    cells, cuts = [], []
    with common.workshop() as made:
        for regime in ["hh"] if args.quick else common.LENGTHS:
            prepared = prepare(Path(made), regime, 8192, args.dtype, args.steps)
            cells.append(of_the_peak(prepared, regime, args.dtype))
            cuts.append(blocks(prepared, regime))
    print(common.table(
        ["rows", "type", "FLOPs of distinct tokens over peak", "computed, with attention", "last layer's rows unseen",
         "share of all FLOPs"],
        [[c["regime"], c["dtype"], f"{c['share_of_peak']:.0%}", f"{c['share_computed']:.0%}",
          f"{c['unseen_rows_share']:.0%}", f"{c['unseen_share']:.1%}"] for c in cells],
    ))  # fmt: skip
    print(
        common.table(
            ["rows", *(f"blocks of {n}: ms" for n in ROWS)], [[c["regime"], *c["milliseconds"].values()] for c in cuts]
        )
    )
    suffix = "-quick" if args.quick else ""
    common.save(f"limit-{args.dtype}{suffix}", cells, {"torch": torch.__version__}, attention=cuts)


if __name__ == "__main__":
    main()

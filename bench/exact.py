"""Largest difference between `preftune score` and a plain transformers forward pass, one response at a time.

    python bench/exact.py MODEL PAIRS [PAIRS ...] --rows 200

Everything as a user has it: fp32, packs of several rows, shared prefixes, whatever path the machine takes. The plain
side knows nothing of packs: it gives the model one prompt with one response and takes log_softmax of all its logits.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from preftune.config.load import load
from preftune.rows.split import read_rows
from preftune.run.dataset import longest
from preftune.run.prepare_rows import prepare
from preftune.run.score import score
from preftune.tokens.tokenizer import load_tokenizer

TARGET = 1e-4  # nats a response


def compare(model: Path, pairs: Path, rows: int, words: list[str]) -> tuple[float, float, int]:
    """(largest difference in nats a response, the same relative to the logp, responses) on the first rows of a file."""
    with tempfile.TemporaryDirectory() as place:
        few, out = Path(place) / "rows.jsonl", Path(place) / "scores.jsonl"
        with pairs.open() as lines:
            few.write_text("".join(islice(lines, rows)))
        run = load(None, [f"model.path={model}", f"data.train={few}", f"reference.store={place}", *words])
        score(run, out)
        plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
        tokenizer = load_tokenizer(str(run.model.tokenizer or model))
        groups = prepare(read_rows(run.data, 0), run.data, tokenizer, longest(run, plain.config)).train
        worst, relative, count = 0.0, 0.0, 0
        for line, group in zip(out.read_text().splitlines(), groups, strict=True):
            told = json.loads(line)
            for side, response in zip(("chosen", "rejected"), group.responses, strict=True):
                ids = torch.tensor([[*group.prompt.tolist(), *response.tolist()]])
                with torch.no_grad():
                    logits = plain(ids).logits[0, len(group.prompt) - 1 : -1]
                logp = float(logits.log_softmax(-1).gather(1, ids[0, len(group.prompt) :, None]).double().sum())
                off, count = abs(logp - told[side]["logp"]), count + 1
                worst, relative = max(worst, off), max(relative, off / abs(logp))
    return worst, relative, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pairs", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--words", nargs="*", default=[], help="more key=value for the run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for pairs in given.pairs:
        worst, relative, count = compare(given.model, pairs, given.rows, given.words)
        verdict = "within" if worst < TARGET else "ABOVE"
        print(f"{pairs.name}: {count} responses, largest difference {worst:.1e} nats ({relative:.1e} of the logp), "
              f"{verdict} {TARGET:.0e}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

"""What every benchmark stands on: models and rows made here, child processes, medians, and results on disk.

A benchmark runs ours and the peer as child processes, in turn, on the same rows, the same model folder and the same
updates of 8 pairs. Each child prints one JSON object as its last line. Times are CPU seconds of the child on one
thread, because other programs share the machine; what is compared are ratios of the same update in both.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from preftune import files
from preftune.pack.plan import make_plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3Config

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PEERS = os.environ.get("PEERS", str(HERE.parent / ".venv-peers/bin/python"))
SHARED = Path(os.environ.get("PREFTUNE_SHARED", HERE.parents[1] / "shared")) / "data"
PAIRS = 8  # of one update, everywhere
MAX_TOKENS = 1024  # prompt and response, in ours and in the peer
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}  # freed memory leaves the process
LENGTHS = {"long-prompt": (400, 40), "hh": (150, 100), "ultrafeedback": (200, 350)}  # mean tokens: prompt, response
SHAPES = {  # vocabulary -> width, MLP width, layers, heads; the small one has a body of 9.4M
    8192: (384, 1024, 6, 6),
    151936: (256, 768, 4, 4),
}
Row = dict[str, str]


def model_folder(root: Path, vocab: int) -> Path:
    """A random model of Qwen3's architecture with a tokenizer whose words are w3, w4, ...: one word, one token."""
    path = root / f"model-{vocab}"
    if path.exists():
        return path
    import torch
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(0)
    Qwen3ForCausalLM(qwen3_config(SHAPES[vocab], vocab)).save_pretrained(path)
    word_tokenizer(vocab).save_pretrained(path)
    return path


def qwen3_config(shape: tuple[int, int, int, int], vocab: int) -> Qwen3Config:
    """shape: width, MLP width, layers, heads."""
    from transformers import Qwen3Config

    width, inner, layers, heads = shape
    return Qwen3Config(
        vocab_size=vocab, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=2, head_dim=64, max_position_embeddings=4096,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip


def word_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are w3, w4, ...: one word, one token, and the number is its id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<end>": 1, "<unknown>": 2, **{f"w{i}": i for i in range(3, vocab)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>",
        model_max_length=4096, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def hashed(text: str, vocab: int) -> str:
    """Real text with each word and mark replaced by the vocabulary's word that it hashes to."""
    return " ".join(f"w{3 + zlib.crc32(word.encode()) % (vocab - 3)}" for word in re.findall(r"\w+|[^\w\s]", text))


def spoken(turns: str | list[dict[str, str]]) -> str:
    """Text as it stands, or the turns of a conversation one after the other."""
    return turns if isinstance(turns, str) else " ".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def made_rows(regime: str, vocab: int, count: int, seed: int = 0) -> list[Row]:
    """Rows of random words with log-normal lengths of the regime's means; the spread is 0.45 in the logarithm."""
    rng, spread = np.random.default_rng(seed), 0.45
    prompt, response = LENGTHS[regime]

    def words(mean: int, most: int) -> str:
        count = int(np.clip(rng.lognormal(np.log(mean) - spread**2 / 2, spread), 4, most))
        return " ".join(f"w{i}" for i in rng.integers(3, vocab, count))

    return [
        {"prompt": words(prompt, 600), "chosen": " " + words(response, 400), "rejected": " " + words(response, 400)}
        for _ in range(count)
    ]


def real_rows(file: str, vocab: int, count: int | None) -> list[Row]:
    """Rows of a file of pairs that fit, as hashed words; where a count is given, drawn without replacement."""
    found: list[Row] = []
    lines = (SHARED / "pairs" / file).read_text().splitlines()
    for place in np.random.default_rng(0).permutation(len(lines)) if count else range(len(lines)):
        raw = json.loads(lines[place])
        row = {key: hashed(spoken(raw[key]), vocab) for key in ("prompt", "chosen", "rejected")}
        sizes = [len(row[key].split()) for key in row]
        if min(sizes) and row["chosen"] != row["rejected"] and sizes[0] + max(sizes[1:]) < MAX_TOKENS - 8:
            found.append({"prompt": row["prompt"], "chosen": " " + row["chosen"], "rejected": " " + row["rejected"]})
        if len(found) == count:
            break
    return found


def rows_of(regime: str, vocab: int, count: int) -> tuple[list[Row], str]:
    """Rows and where they come from. Real ones where the folder of real data is there."""
    file = {"hh": "hh_harmless.train.jsonl", "ukp": "ukp_convarg.train.jsonl"}.get(regime)
    if file and (SHARED / "pairs" / file).exists():
        return real_rows(file, vocab, count), f"real rows of {file}, words hashed into the vocabulary"
    return made_rows(regime if regime in LENGTHS else "hh", vocab, count), "random words, log-normal lengths"


def planned(rows: Sequence[Row], seed: int, steps: int | None = None, per_step: int = PAIRS) -> list[Row]:
    """The rows in the order in which our plan meets them, so that a peer that does not shuffle makes the same steps."""
    plan = make_plan([sum(len(t.split()) for t in row.values()) for row in rows],
                     rows=per_step, tokens=10**9, seed=seed, steps=steps)  # fmt: skip
    return [rows[i] for step in plan.steps for pack in step.packs for i in pack]


def write_rows(path: Path, rows: Sequence[dict]) -> Path:
    """Rows as JSON lines."""
    files.write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def process(command: Sequence[str], env: dict[str, str]) -> dict:
    """Run a child on one thread and return the JSON that it printed last. Raises where it failed."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    env = {**os.environ, **QUIET, **threads, **env}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def child(which: str, spec: dict, env: dict[str, str] | None = None) -> dict:
    """Run ours.py or peer.py on a spec, and return what it measured."""
    python = sys.executable if which == "ours" else PEERS
    source = {"PYTHONPATH": str(HERE.parent / "src") if which == "ours" else ""}
    return process([python, str(HERE / f"{which}.py"), json.dumps(spec)], {**source, **(env or {})})


def same(ours: dict, peer: dict) -> dict[str, float]:
    """How far two children are apart in what they trained: largest differences of loss and of gradient norm."""
    both = list(zip(ours["steps"], peer["steps"], strict=False))
    return {
        "loss": max(abs(a["loss"] - b["loss"]) for a, b in both),
        "grad_norm": max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in both),
    }


def cpu(steps: Sequence[dict]) -> list[float]:
    """CPU seconds of every update but the first."""
    return [step["cpu"] for step in steps[1:]]


def ratios(peer: Sequence[dict], ours: Sequence[dict]) -> list[float]:
    """The peer's time over ours, update by update, without the first."""
    return [a / b for a, b in zip(cpu(peer), cpu(ours), strict=False)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def device() -> str:
    """The class of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def save(name: str, cells: object, versions: dict[str, str], **details: object) -> Path:
    """Write a benchmark's result with everything that it depends on."""
    path = RESULTS / f"{name}.json"
    about = {
        "benchmark": name, "date": datetime.date.today().isoformat(), "device": device(), "threads": 1,
        "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions, **details,
    }  # fmt: skip
    files.write_json(path, {**about, "cells": cells})
    print(f"written: {path.relative_to(HERE.parent)}")
    return path


def table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A markdown table."""
    shown = [[f"{x:.2f}" if isinstance(x, float) else str(x) for x in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *shown])


def options(about: str, *more: Callable[[argparse.ArgumentParser], object]) -> argparse.Namespace:
    """The command line that the benchmarks share, with what one adds."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="a taste in under three minutes; not for quoting")
    for add in more:
        add(parser)
    return parser.parse_args()


def workshop() -> tempfile.TemporaryDirectory:
    """A folder for models, rows and records that goes away."""
    return tempfile.TemporaryDirectory(prefix="preftune-bench-")

"""Responses drawn a CPU second: our sampler beside transformers' `generate`, in turn, in one process on one thread.

Both draw 8 responses to each prompt with the same forced lengths, exponential with a mean of 48 tokens and cut at 128,
from the whole distribution at temperature 1. `generate` takes all prompts at once or 8 at a time, whichever was faster
when both were tried. What counts are the tokens of the responses, without what is behind their ends.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from argparse import ArgumentParser
from collections.abc import Callable

import common
import numpy as np
import torch
import transformers
from common import median
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LogitsProcessor, PreTrainedModel

from preftune.model.policy import wrap
from preftune.rollout.embedded import Embedded

RESPONSES, MEAN, LONGEST, END = 8, 48, 128, 2
SIZES = {"10M": (8192, 320, 6, 864, 8, 4), "55M": (32000, 512, 12, 1408, 8, 8)}
CELLS = [("stories260K", 32, 64), ("10M", 32, 64), ("stories260K", 8, 384), ("10M", 8, 384)]


def model(name: str) -> PreTrainedModel:
    """A random Llama of about this size, or the shared small one."""
    torch.manual_seed(0)
    if name not in SIZES:
        folder = common.SHARED.parent / "models" / name
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    vocab, width, layers, inner, heads, key_heads = SIZES[name]
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, intermediate_size=inner,
        num_attention_heads=heads, num_key_value_heads=key_heads, max_position_embeddings=2048,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=END,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()  # pyright: ignore[reportReturnType]


class EndAt(LogitsProcessor):
    """Forces the end token at the length that each row is to have, and nowhere else."""

    def __init__(self, lengths: np.ndarray, prompt: int) -> None:
        self.lengths, self.prompt = torch.from_numpy(lengths.reshape(-1)), prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        last = input_ids.shape[1] - self.prompt + 1 >= self.lengths
        scores[:, END] = -torch.inf
        scores[last] = -torch.inf
        scores[last, END] = 0
        return scores


def theirs(module: PreTrainedModel, prompts: np.ndarray, lengths: np.ndarray, at_once: int) -> None:
    """All responses by `generate`, some prompts a call."""
    for first in range(0, len(prompts), at_once):
        ids, wanted = torch.from_numpy(prompts[first : first + at_once]), lengths[first : first + at_once]
        module.generate(  # pyright: ignore[reportCallIssue]  every causal model has it; the base class does not
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
            num_return_sequences=RESPONSES, max_new_tokens=int(wanted.max()), eos_token_id=END, pad_token_id=0,
            logits_processor=[EndAt(wanted, ids.shape[1])],
        )  # fmt: skip


def timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(name: str, count: int, tokens: int, repeat: int) -> dict[str, object]:
    """CPU seconds of both, in turn."""
    rng = np.random.default_rng(0)
    plain = model(name)
    policy, _ = wrap(copy.deepcopy(plain), "trie")
    plain.set_attn_implementation("sdpa")
    prompts = rng.integers(3, policy.vocab, (count, tokens))
    lengths = np.minimum(LONGEST, 1 + rng.exponential(MEAN, (count, RESPONSES)).astype(int))
    sampler = Embedded(policy, LONGEST, frozenset())
    rows = list(prompts.astype(np.int32))

    def ours() -> None:
        drawn = sampler.draw_up_to(rows, lengths, (0,))
        assert [len(ids) for each in drawn for ids in each.ids] == lengths.reshape(-1).tolist()

    ways = {size: timed(lambda size=size: theirs(plain, prompts, lengths, size)) for size in sorted({8, count})}
    best = min(ways, key=lambda size: ways[size])
    timed(ours)
    pairs = [(timed(lambda: theirs(plain, prompts, lengths, best)), timed(ours)) for _ in range(repeat)]
    generate, embedded = (median([pair[side] for pair in pairs]) for side in (0, 1))
    total = int(lengths.sum())
    return {
        "model": name, "rows": count * RESPONSES, "prompt": tokens, "tokens": total, "prompts_a_call": best,
        "generate": total / generate, "ours": total / embedded, "ratio": median([a / b for a, b in pairs]),
        "ratios": [a / b for a, b in pairs],
    }  # fmt: skip


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cell", nargs=3, metavar=("MODEL", "PROMPTS", "TOKENS"), help="measure one, and print JSON")


def main() -> None:
    args = common.options(__doc__ or "", add)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    repeat = 1 if args.quick else args.repeat
    if args.cell:
        print(json.dumps(measure(args.cell[0], int(args.cell[1]), int(args.cell[2]), repeat)))
        return
    cells = []
    for name, count, tokens in CELLS:
        words = ["--repeat", str(repeat), "--cell", name, str(count), str(tokens)]
        cells.append(common.process([sys.executable, __file__, *words], {}))
        print(json.dumps(cells[-1]), file=sys.stderr)
    head = ["model", "rows", "prompt", "generate tokens/s", "ours tokens/s", "ratio"]
    columns = ("model", "rows", "prompt", "generate", "ours", "ratio")
    print(common.table(head, [[cell[key] for key in columns] for cell in cells]))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    common.save(f"rollout{'-quick' if args.quick else ''}", cells, versions)


if __name__ == "__main__":
    main()

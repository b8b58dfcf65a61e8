"""Responses drawn from a model by transformers' own `generate`, as token ids and as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AT_ONCE = 1024  # responses drawn in one call


@dataclass(frozen=True, slots=True)
class Drawn:
    """Responses to one prompt. ids: int32 each, with the end token where it was drawn; texts: the same without it."""

    prompt: str
    prompt_ids: np.ndarray
    ids: tuple[np.ndarray, ...]
    texts: tuple[str, ...]


def draw(
    module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], count: int, *,
    longest: int, seed: int, show: Callable[[int, int], None] = lambda done, total: None,
) -> list[Drawn]:  # fmt: skip
    """`count` independent responses to each prompt from the model's full distribution, at temperature 1.

    longest: tokens after which a response is cut off. show: called with the responses done and all there will be.
    """
    import torch

    end = tokenizer.get_vocab()[str(tokenizer.eos_token)]
    drawn: list[Drawn] = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for prompt in prompts:
            given = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].to(module.device)
            rows: list[np.ndarray] = []
            while len(rows) < count:
                made = module.generate(  # pyright: ignore[reportCallIssue]  every causal model has it; the base class does not
                    given, attention_mask=torch.ones_like(given), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                    max_new_tokens=longest, num_return_sequences=min(AT_ONCE, count - len(rows)),
                    eos_token_id=end, pad_token_id=tokenizer.pad_token_id,
                )  # fmt: skip
                rows += [_ended(row, end) for row in made[:, given.shape[1] :].cpu().numpy()]
            texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
            drawn.append(Drawn(prompt, given[0].cpu().numpy().astype(np.int32), tuple(rows), tuple(texts)))
            show(len(drawn) * count, len(prompts) * count)
    return drawn


def _ended(row: np.ndarray, end: int) -> np.ndarray:
    """The row up to and with its first end token."""
    ends = np.flatnonzero(row == end)
    return row[: ends[0] + 1 if len(ends) else None].astype(np.int32)

"""Responses drawn from a model by transformers' own `generate`, as token ids and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from preftune.events import Progress, emit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CALL = 1024  # responses drawn in one call


@dataclass(frozen=True, slots=True)
class Drawn:
    """Responses to one prompt. ids: int32 each, with the end token where it was drawn; texts: the same without it."""

    prompt: str
    prompt_ids: np.ndarray
    ids: tuple[np.ndarray, ...]
    texts: tuple[str, ...]


def draw(
    module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], count: int, *,
    longest: int, seed: int, stage: str = "drawing responses",
) -> list[Drawn]:  # fmt: skip
    """`count` independent responses to each prompt from the model's full distribution, at temperature 1.

    longest: tokens after which a response is cut off. stage: the name under which progress is emitted.
    """
    import torch

    end = tokenizer.get_vocab()[str(tokenizer.eos_token)]
    drawn: list[Drawn] = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for prompt in prompts:
            ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].to(module.device)
            responses: list[np.ndarray] = []
            while len(responses) < count:
                rows = module.generate(  # pyright: ignore[reportCallIssue]  every causal model has it; the base class does not
                    ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                    max_new_tokens=longest, num_return_sequences=min(CALL, count - len(responses)),
                    eos_token_id=end, pad_token_id=tokenizer.pad_token_id,
                )  # fmt: skip
                responses += [_until_end(row, end) for row in rows[:, ids.shape[1] :].cpu().numpy()]
            texts = tuple(str(tokenizer.decode(row, skip_special_tokens=True)) for row in responses)
            drawn.append(Drawn(prompt, ids[0].cpu().numpy().astype(np.int32), tuple(responses), texts))
            emit(Progress(stage, len(drawn) * count, len(prompts) * count))
    return drawn


def _until_end(row: np.ndarray, end: int) -> np.ndarray:
    """The row up to and with its first end token."""
    ends = np.flatnonzero(row == end)
    return row[: ends[0] + 1 if len(ends) else None].astype(np.int32)

"""Reviews drawn from a model, as token ids and as text. Held by tests/demo/test_tiny.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from preftune.events import Progress, emit
from preftune.tokens.groups import TokenGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preftune.model.policy import Policy

LONGEST = 32  # tokens of a review; three full clauses have 20


@dataclass(frozen=True, slots=True)
class Drawn:
    """Responses to one prompt. group: their ids, with the end token where it was drawn; texts: the same without it;
    logp: (responses,) fp64, under the model that drew them, in nats."""

    prompt: str
    group: TokenGroup
    texts: tuple[str, ...]
    logp: np.ndarray


def load_policy(path: Path) -> Policy:
    """The model of a folder, in fp32 on the CPU."""
    import torch

    from preftune.model.load import load_model
    from preftune.model.policy import wrap

    device = torch.device("cpu")
    loaded = load_model(str(path), revision=None, weights="float32", device=device, location=str(path))
    loaded.module.requires_grad_(False)
    return wrap(loaded.module, "auto")[0]


def draw(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], count: int, *, seed: int,
    longest: int = LONGEST, stage: str = "drawing reviews",
) -> list[Drawn]:  # fmt: skip
    """`count` independent responses to each prompt from the model's full distribution, at temperature 1.

    longest: tokens after which a response is cut off. stage: the name under which progress is emitted.
    """
    from preftune.rollout.embedded import Embedded
    from preftune.rows.row import Place

    sampler = Embedded(policy, longest, frozenset({tokenizer.get_vocab()[str(tokenizer.eos_token)]}))
    drawn: list[Drawn] = []
    for prompt in prompts:
        ids = np.array(tokenizer(prompt, add_special_tokens=False)["input_ids"], np.int32)
        (responses,) = sampler.draw([ids], count, (seed,))
        group = TokenGroup(prompt=ids, responses=responses.ids, kind="demo", place=Place(prompt, 1))
        texts = tokenizer.batch_decode([row.tolist() for row in responses.ids], skip_special_tokens=True)
        logp = np.array([values.sum(dtype=np.float64) for values in responses.logp])
        drawn.append(Drawn(prompt, group, tuple(map(str, texts)), logp))
        emit(Progress(stage, len(drawn) * count, len(prompts) * count))
    return drawn


def logp_of(policy: Policy, drawn: Sequence[Drawn]) -> np.ndarray:
    """(groups, responses) log-probability of drawn responses under another model, in nats."""
    import torch

    from preftune.pack.batch import collate

    rows = []
    for sample in drawn:
        batch = collate([sample.group], policy.device)
        with torch.no_grad():
            rows.append(batch.sum(policy.token_logp(batch)).double().cpu().numpy())
    return np.stack(rows)

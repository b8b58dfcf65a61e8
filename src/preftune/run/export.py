"""An adapter and its base as one model. Held by tests/laws/test_adapters.py."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from preftune import folders
from preftune.errors import UserError
from preftune.events import Note, emit
from preftune.model.adapter_files import adapter_at, base_of, tokenizer_source
from preftune.model.as_made import take_back
from preftune.model.budget import positions
from preftune.model.load import DTYPES, load_model
from preftune.model.plain import plain_logp
from preftune.model.policy import Policy, wrap
from preftune.model.scalar import load_scorer
from preftune.model.weights import WholeModel
from preftune.pack.batch import Batch
from preftune.rows.row import Place
from preftune.tokens.groups import TokenGroup
from preftune.tokens.tokenizer import load_tokenizer

ROWS, TOKENS = 8, 64  # of random tokens, on which the merged model is compared with the two


class Merged(NamedTuple):
    """How far the merged model is off base and adapter, in nats a token or of a score: on average, and at worst."""

    mean: float
    worst: float
    unit: str


def merge(adapter: str, into: Path, weights: str = "float32") -> Merged:
    """Write base and adapter as one model of type `weights`, which needs peft no more; the sum is made in fp32.

    Raises UserError where `adapter` is none.
    """
    path = str(Path(adapter, "model")) if Path(adapter, "run.toml").is_file() else adapter
    files = adapter_at(path, None, "ADAPTER")
    if files is None:
        raise UserError("is no adapter, so there is nothing to merge.", location=path,
                        hint="Name a folder with adapter_config.json, or a run with [adapter].")  # fmt: skip
    if into.exists() and any(into.iterdir()):
        raise UserError("this folder is not empty.", location=str(into), hint="Name another one.")
    from preftune.model.adapter import without_warnings
    from preftune.model.put_adapter import load_adapter

    emit(Note("loading base and adapter"))
    base, load = base_of(files, "ADAPTER"), partial(load_scorer, fresh=True) if files.of_scores else load_model
    module = load(base, revision=files.revision, weights="float32", device=torch.device("cpu"),
                  location="ADAPTER").module  # fmt: skip
    around = load_adapter(module, files, "ADAPTER")
    policy = wrap(module, "padded")[0]
    batch = _random_rows(policy)
    before = plain_logp(policy, batch)
    emit(Note("merging"))
    take_back(module, "eager")
    with without_warnings():
        around.merge_and_unload()
    module.to(DTYPES[weights])  # pyright: ignore[reportArgumentType]
    policy = wrap(module, "padded")[0]
    off = (plain_logp(policy, batch).double() - before.double()).abs()
    tokenizer = load_tokenizer(tokenizer_source(path, None))
    with folders.folder(into) as folder:
        WholeModel(policy.module).export(folder, tokenizer)
    return Merged(float(off.mean()), float(off.max()), policy.head.unit)


def _random_rows(policy: Policy) -> Batch:
    """Random tokens: the same for every adapter of a family, and harder on rounding than text is."""
    random, tokens = np.random.default_rng(0), min(TOKENS, positions(policy.module.config) // 2)
    rows = random.integers(0, policy.vocab, (ROWS, 2, tokens)).astype(np.int32)
    return policy.batch([
        TokenGroup(prompt=prompt, responses=(response,), kind="demo", place=Place("random", index), id=str(index))
        for index, (prompt, response) in enumerate(rows)
    ])  # fmt: skip

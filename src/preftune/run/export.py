"""An adapter and its base as one model, and a checkpoint as a model. Held by tests/laws/test_adapters.py and
tests/laws/test_finished.py."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from preftune import folders
from preftune.config.load import load
from preftune.errors import CORRUPT, UserError
from preftune.events import Note, emit
from preftune.files import lies_in
from preftune.model.adapter_files import AdapterFiles, adapter_at, base_of, tokenizer_source
from preftune.model.as_made import take_back
from preftune.model.budget import positions
from preftune.model.load import DTYPES, load_model
from preftune.model.plain import plain_logp
from preftune.model.policy import Policy, wrap
from preftune.model.scalar import load_scorer
from preftune.model.weights import WholeModel
from preftune.objective import of_scores
from preftune.record.parse import RUN_FILE, model_of, parse_json
from preftune.record.replace import CHECKPOINTS, IDENTITY
from preftune.rows.row import Place
from preftune.run.dataset import load_dataset, tokenizer_of
from preftune.run.match_rows import Notes, match_rows
from preftune.run.models import load_weights
from preftune.tokens.groups import TokenGroup
from preftune.tokens.tokenizer import load_tokenizer
from preftune.training import checkpoint
from preftune.training.checkpoint import PREFIX

if TYPE_CHECKING:
    from peft import PeftModel

ROWS, TOKENS = 8, 64  # of random tokens, on which the merged model is compared with the two


class Merged(NamedTuple):
    """How far the merged model is off base and adapter, in nats a token or of a score: on average, and at worst.

    quantized: kind of the base on which the adapter has learned, where that is quantized; off_quantized: how far the
    merged model is off that one with the adapter, on average.
    """

    mean: float
    worst: float
    unit: str
    quantized: str = ""
    off_quantized: float = 0.0


def merge(adapter: str, into: Path, weights: str = "float32") -> Merged:
    """Write base and adapter as one model of type `weights`, which needs peft no more; the sum is made in fp32.

    Raises UserError where `adapter` is none.
    """
    path = model_of(adapter)
    files = adapter_at(path, None, "ADAPTER")
    if files is None:
        raise UserError("is no adapter, so there is nothing to merge.", location=path,
                        hint="Name a folder with adapter_config.json, or a run with [adapter].")  # fmt: skip
    refuse_filled(into, path, files.base)
    from preftune.model.adapter import without_warnings

    emit(Note("loading base and adapter"))
    tuned = _said(_policy(_loaded(files, files.quantized))) if files.quantized else None
    around = _loaded(files, "float32")
    before = _policy(around)
    said_before, module = _said(before), before.module
    emit(Note("merging"))
    take_back(module, "eager")
    with without_warnings():
        around.merge_and_unload()
    module.to(DTYPES[weights])  # pyright: ignore[reportArgumentType]
    merged = _said(wrap(module, "padded")[0])
    off, off_quantized = (merged - said_before).abs(), 0.0 if tuned is None else float((merged - tuned).abs().mean())
    tokenizer = load_tokenizer(tokenizer_source(path, None))
    with folders.folder(into) as folder:
        WholeModel(module).export(folder, tokenizer)
    return Merged(float(off.mean()), float(off.max()), before.head.unit, files.quantized, off_quantized)


def checkpoint_as_model(record: Path, step: int, into: Path) -> None:
    """Write the model, or the adapter, that a run would have left had it ended after this step. Raises UserError."""
    if not (record / RUN_FILE).is_file():
        raise UserError("is no run, so it has no checkpoints.", location=str(record), hint="Name the `out` of a run.")
    by_step = {int(path.name.removeprefix(PREFIX)): path for path in checkpoint.checkpoints_in(record / CHECKPOINTS)}
    if step not in by_step:
        hint = f"There are: {', '.join(map(str, sorted(by_step)))}." if by_step else "Runs write them with save.every."
        raise UserError(f"there is no checkpoint of step {step}.", location=str(record / CHECKPOINTS), hint=hint)
    refuse_filled(into, str(record))
    run, began = load(str(record / RUN_FILE)), parse_json(record / IDENTITY, dict[str, object]) or {}
    emit(Note("loading the model"))
    tokenizer = match_rows(run, load_dataset(run)).dataset.tokenizer if of_scores(run.objective) else tokenizer_of(run)
    weights = load_weights(run, tokenizer, Notes(), torch.device("cpu"))
    if weights.digest() != began.get("model"):  # a checkpoint has what is trained, and that alone
        raise UserError("is not the model that the run began from.", location="model.path", code=CORRUPT,
                        hint=f"Another model has its name now: {run.model.path}.")  # fmt: skip
    if problem := checkpoint.load_weights(weights, by_step[step]):
        raise UserError(f"cannot be read: {problem}.", location=str(by_step[step]), code=CORRUPT)
    with folders.folder(into) as folder:
        weights.export(folder, tokenizer)


def refuse_filled(into: Path, *sources: str) -> None:
    """Raise UserError where something is in a folder that is to be written, or it lies in one that is read."""
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise UserError("this folder is not empty.", location=str(into), hint="Name another one.")
    if source := next((name for name in sources if name and lies_in(into, Path(name))), ""):
        raise UserError(f"this lies in {source}, which is read.", location=str(into), hint="Name another folder.")


def _loaded(files: AdapterFiles, weights: str) -> PeftModel:
    """An adapter on its base in these weights."""
    from preftune.model.put_adapter import load_adapter

    load = partial(load_scorer, fresh=True) if files.of_scores else load_model
    loaded = load(base_of(files, "ADAPTER"), revision=files.revision, weights=weights, device=torch.device("cpu"),
                  location="ADAPTER")  # fmt: skip
    return load_adapter(loaded.module, files, "ADAPTER")


def _policy(around: PeftModel) -> Policy:
    """The model that an adapter changes, before either is prepared."""
    module = around.get_base_model()
    assert isinstance(module, PreTrainedModel)
    return wrap(module, "padded")[0]


def _said(policy: Policy) -> Tensor:
    """What a model says of random tokens: the same for every adapter of a family, and harder on rounding than text."""
    random, tokens = np.random.default_rng(0), min(TOKENS, positions(policy.module.config) // 2)
    rows = random.integers(0, policy.vocab, (ROWS, 2, tokens)).astype(np.int32)
    batch = policy.batch([
        TokenGroup(prompt=prompt, responses=(response,), kind="demo", place=Place("random", index), id=str(index))
        for index, (prompt, response) in enumerate(rows)
    ])  # fmt: skip
    return plain_logp(policy, batch).double()

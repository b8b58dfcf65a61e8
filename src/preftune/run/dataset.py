"""What a run learns from, in tokens: the part of its preparation that runs of a sweep share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from preftune.config.run import Run
from preftune.errors import UserError
from preftune.model.budget import positions
from preftune.model.load import PreTrainedConfig, load_config
from preftune.record.show import Show
from preftune.rows.split import Rows, read_rows
from preftune.run.prepare_rows import Prepared, prepare
from preftune.tokens.tokenizer import load_tokenizer, tokenizer_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Material:
    """config: the model's; digests: of the rows' files and of the tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    prepared: Prepared
    digests: dict[str, str]


Gather = Callable[[Run, Show], Material]


def gather(run: Run, show: Show) -> Material:
    """Read and tokenize, and say what is odd about the rows. Raises UserError."""
    show("reading rows")
    found = in_tokens(run, read_rows(run.data))
    for counts in (found.prepared.account.train, found.prepared.account.evaluate):
        for note in counts.notes if counts else ():
            show(note)
    return found


def in_tokens(run: Run, rows: Rows) -> Material:
    """The same of rows that were read. Raises UserError."""
    tokenizer = load_tokenizer(run.model.tokenizer or run.model.path, run.model.revision, run.data.template)
    config = load_config(run.model.path, run.model.revision, "model.path")
    prepared = prepare(rows, run.data, tokenizer, longest(run, config))
    return Material(tokenizer, config, prepared, {**rows.digests, "tokenizer": tokenizer_digest(tokenizer)})


def gather_once() -> Gather:
    """`gather` that keeps what it made, and gives it to every run with the same rows and model."""
    kept: dict[bytes, Material] = {}

    def gather_or_take(run: Run, show: Show) -> Material:
        key = msgspec.json.encode((replace(run.data, rankings="all"), run.model))
        if key not in kept:
            kept[key] = gather(run, show)
        return kept[key]

    return gather_or_take


def longest(run: Run, config: PreTrainedConfig) -> int:
    """Tokens that a prompt with a response may have. Raises UserError where the model has fewer positions."""
    limit = positions(config)
    if run.data.max_tokens is not None and run.data.max_tokens > limit:
        raise UserError(f"the model has {limit} positions.", location="data.max_tokens", hint=f"Use {limit} or less.")
    return run.data.max_tokens or min(1024, limit)

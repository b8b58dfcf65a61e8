"""The rows of a run in token ids, with an account of every row: what the runs of a sweep share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from preftune.config.run import Run
from preftune.errors import UserError
from preftune.events import Note, emit
from preftune.model.adapter_files import tokenizer_source
from preftune.model.budget import positions
from preftune.model.load import PreTrainedConfig, load_config
from preftune.rollout.tasks import Tasks
from preftune.rows.account import TOO_LONG, Account, Counts, by_reason, refuse_too_many
from preftune.rows.config import Data
from preftune.rows.split import Rows, read_rows
from preftune.rows.texts import with_texts
from preftune.tokens.groups import TokenGroup, with_lengths
from preftune.tokens.tokenize import Tokenized, tokenize
from preftune.tokens.tokenizer import load_tokenizer, tokenizer_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PURPOSES = {"train": "train on", "evaluate": "measure on"}
MAX_TOKENS = 1024  # of a prompt with one response, where neither the run nor the model says otherwise


class Dataset(Struct, frozen=True):
    """train, held_out: the groups to learn from and to measure on; account: what data.json holds; config: the model's;
    max_tokens: of a prompt with one response; digests: of the rows' files and of the tokenizer; tokenized: by part."""

    train: list[TokenGroup]
    held_out: list[TokenGroup]
    account: Account
    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    max_tokens: int
    digests: dict[str, str]
    tokenized: dict[str, Tokenized]


Loader = Callable[[Run], Dataset]


def load_dataset(run: Run) -> Dataset:
    """Read and tokenize, and say what is odd about the rows. Raises UserError."""
    emit(Note("reading rows"))
    dataset = tokenize_rows(run, read_rows(run.data))
    for counts in (dataset.account.train, dataset.account.evaluate):
        for note in counts.notes if counts else ():
            emit(Note(note))
    return dataset


def cached_loader() -> Loader:
    """`load_dataset` that gives one dataset to every run with the same rows and model."""
    datasets: dict[bytes, Dataset] = {}

    def load(run: Run) -> Dataset:
        key = msgspec.json.encode((replace(run.data, rankings="all"), run.model), enc_hook=id)  # id: values of Python
        if key not in datasets:
            datasets[key] = load_dataset(run)
        return datasets[key]

    return load


def tokenizer_of(run: Run) -> PreTrainedTokenizerBase:
    """The tokenizer that a run names, or its model's. Raises UserError."""
    path, revision = run.model.path, run.model.revision
    named = run.model.tokenizer or (tokenizer_source(path, revision) if isinstance(path, str) else str(path))
    return load_tokenizer(named, revision, run.data.template)


def tokenize_rows(run: Run, rows: Rows) -> Dataset:
    """Rows that were read, in token ids. Raises UserError where too many are unusable, or none is left."""
    config, tokenizer = config_of(run), tokenizer_of(run)
    max_tokens = limit_of(run.data, config) or min(MAX_TOKENS, positions(config))
    parts = {"train": rows.train, "evaluate": rows.evaluate}
    tokenized = {
        part: tokenize(part_rows, tokenizer, max_tokens=max_tokens, too_long=run.data.too_long,
                       template_options=run.data.template_options)
        for part, part_rows in parts.items()
        if part_rows
    }  # fmt: skip
    refuse_skipped(rows, tokenized, run.data.max_skipped)
    for part, result in tokenized.items():
        if not result.groups:
            reasons = ", ".join(f"{len(skipped)} x {reason}" for reason, skipped in by_reason(result.skipped).items())
            raise UserError(f"no row is left to {PURPOSES[part]} ({reasons}).", location=f"data.{part}",
                            hint=f"max_tokens is {max_tokens}; see `preftune check`.")  # fmt: skip
    groups = {part: result.groups for part, result in tokenized.items()}
    account = with_lengths(account_of(rows, tokenized, max_tokens), groups["train"])
    account = with_texts(account, rows.train, rows.evaluate)
    digests = {**rows.digests, "tokenizer": tokenizer_digest(tokenizer)}
    held_out = groups.get("evaluate", [])
    return Dataset(groups["train"], held_out, account, tokenizer, config, max_tokens, digests, tokenized)


def config_of(run: Run) -> PreTrainedConfig:
    """The configuration of a run's model, before it is loaded."""
    path = run.model.path
    return load_config(path, run.model.revision, "model.path") if isinstance(path, str) else path.config


def limit_of(data: Data, config: PreTrainedConfig) -> int | None:
    """data.max_tokens. Raises UserError where the model has fewer positions."""
    limit = positions(config)
    if data.max_tokens is not None and data.max_tokens > limit:
        raise UserError(f"the model has {limit} positions.", location="data.max_tokens", hint=f"Use {limit} or less.")
    return data.max_tokens


def refuse_skipped(rows: Rows, parts: Mapping[str, Tokenized | Tasks], allowed: float) -> None:
    """Raise UserError where too many rows of a source were skipped when it was read and tokenized."""
    for part, reading in rows.readings.items():
        of_source = [result for name, result in parts.items() if name == part or name not in rows.readings]
        skipped = [problem for result in of_source for problem in result.skipped if problem.reason not in TOO_LONG]
        if skipped:
            refuse_too_many([*reading.skipped, *skipped], reading.read, [*reading.files], allowed)


def account_of(rows: Rows, parts: Mapping[str, Tokenized | Tasks], max_tokens: int) -> Account:
    """The account of rows that were read and tokenized, without lengths and texts."""
    counts = {part: _counts(part, result, rows) for part, result in parts.items()}
    files = {part: reading.files for part, reading in rows.readings.items()}
    return Account(train=counts["train"], evaluate=counts.get("evaluate"), max_tokens=max_tokens, files=files)


def _counts(part: str, result: Tokenized | Tasks, rows: Rows) -> Counts:
    if isinstance(result, Tokenized):
        kinds, cut = [group.kind for group in result.groups], result.cut
    else:
        kinds, cut = ["task"] * len(result.tasks), 0
    reading = rows.readings.get(part)
    skipped_before, notes = (reading.skipped, reading.notes) if reading else ([], [])
    return Counts(
        read=len(rows.train if part == "train" else rows.evaluate) + len(skipped_before),
        kept=len(kinds),
        cut=cut,
        kinds=dict(Counter(kinds)),
        skipped={reason: len(rows) for reason, rows in by_reason([*skipped_before, *result.skipped]).items()},
        notes=tuple(map(str, [*notes, *result.notes])),
    )

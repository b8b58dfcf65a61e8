"""The rows of a run in token ids, with an account of every row: what the runs of a sweep share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from preftune.config.run import Run
from preftune.errors import Problem, UserError
from preftune.events import Note, emit
from preftune.model.adapter_files import tokenizer_source
from preftune.model.budget import positions
from preftune.model.load import PreTrainedConfig, load_config
from preftune.rollout.tasks import Tasks
from preftune.rows.account import TOO_LONG, Account, Counts, Tally, by_reason, refuse_too_many, unusable
from preftune.rows.config import Data
from preftune.rows.messages import up_to_last_reply
from preftune.rows.row import Row, with_last_turn
from preftune.rows.shares import SHARE
from preftune.rows.split import Rows, read_rows
from preftune.rows.texts import with_texts
from preftune.tokens.groups import TokenGroup, with_lengths
from preftune.tokens.template import refuse_no_system
from preftune.tokens.tokenize import Tokenized, tokenize
from preftune.tokens.tokenizer import load_tokenizer, other_meaning, tokenizer_digest

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
    tell_account(dataset)
    return dataset


def tell_account(dataset: Dataset) -> None:
    """Say what is odd about the rows, and which are left out."""
    for part, counts in (("train", dataset.account.train), ("evaluate", dataset.account.evaluate)):
        for note in counts.notes if counts else ():
            emit(Note(note))
        if counts and counts.skipped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.skipped.items())
            left_out = f"{sum(counts.skipped.values()):,} of {counts.read:,} rows are left out ({reasons})"
            limit = f"; data.max_tokens is {dataset.max_tokens:,}" if {*TOO_LONG} & {*counts.skipped} else ""
            emit(Note(f"data.{part}: {left_out}{limit}"))


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
    """The tokenizer that a run names, or its model's. Raises UserError, also where its chat template has no place for
    data.system."""
    path, revision = run.model.path, run.model.revision
    named = run.model.tokenizer or (tokenizer_source(path, revision) if isinstance(path, str) else str(path))
    tokenizer = load_tokenizer(named, revision, run.data.template)
    if run.data.system is not None:
        refuse_no_system(tokenizer, run.data.template_options, run.data.system)
    return tokenizer


def tokenize_rows(run: Run, rows: Rows) -> Dataset:
    """Rows that were read, in token ids. Raises UserError where too many are unusable, or none is left."""
    config, tokenizer = config_of(run), tokenizer_of(run)
    max_tokens = limit_of(run.data, config) or min(MAX_TOKENS, positions(config))
    train, evaluate = (_answered(part_rows, run.data) for part_rows in (rows.train, rows.evaluate))
    rows = replace(rows, train=train[0], evaluate=evaluate[0])
    parts = {"train": train, "evaluate": evaluate}
    tokenized = {part: _tokenize(*parts[part], tokenizer, max_tokens, run.data) for part in parts if parts[part][0]}
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


def _answered(rows: Sequence[Row], data: Data) -> tuple[list[Row], Tally]:
    """Rows to learn from: of a conversation that ends with a question, the replies before it."""
    answered, tally = [*map(up_to_last_reply, rows)], Tally()
    for row, shorter in zip(rows, answered, strict=True):
        if shorter is not row:
            tally.add("turn.unanswered", "a conversation ends with a question, which is left out", row.place)
    return [*map(with_last_turn, answered)] if data.turns == "last" else answered, tally


def _tokenize(
    rows: Sequence[Row], tally: Tally, tokenizer: PreTrainedTokenizerBase, max_tokens: int, data: Data
) -> Tokenized:
    """Some rows in token ids, without prompts that have no response where others have."""
    tokenized = tokenize(rows, tokenizer, max_tokens=max_tokens, too_long=data.too_long,
                         template_options=data.template_options, control_tokens=data.control_tokens)  # fmt: skip
    groups = [group for group in tokenized.groups if group.kind != "task"] or tokenized.groups
    alone = tokenized.groups if len(groups) < len(tokenized.groups) else []
    skipped = [Problem("it has no response.", str(g.place), reason="response.none") for g in alone if g.kind == "task"]
    return replace(tokenized, groups=groups, skipped=[*tokenized.skipped, *skipped],
                   notes=[*tally.problems(), *tokenized.notes])  # fmt: skip


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
        skipped = unusable([problem for result in of_source for problem in result.skipped])
        if skipped:  # rows that no share takes were read and not tokenized, so each then has a share of its own
            sampled = any(problem.reason == SHARE for problem in reading.skipped)
            before = [] if sampled else unusable(reading.skipped)
            refuse_too_many([*before, *skipped], len(before) + len(reading.rows), [*reading.files], allowed)


def account_of(rows: Rows, parts: Mapping[str, Tokenized | Tasks], max_tokens: int) -> Account:
    """The account of rows that were read and tokenized, without lengths and texts."""
    counts = {part: _counts(part, result, rows) for part, result in parts.items()}
    files = {part: reading.files for part, reading in rows.readings.items()}
    return Account(train=counts["train"], evaluate=counts.get("evaluate"), max_tokens=max_tokens, files=files)


def _counts(part: str, result: Tokenized | Tasks, rows: Rows) -> Counts:
    if isinstance(result, Tokenized):
        kinds, cut = list({group.place: group.kind for group in result.groups}.values()), result.cut
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


def other_tokens(path: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Why a model, which is asked about ids of the policy's tokenizer, does not know them, in words; empty where its
    folder has no tokenizer or one of the same tokens."""
    try:
        own = load_tokenizer(tokenizer_source(path, None))
    except UserError:  # it has none
        return ""
    return other_meaning(tokenizer, own)


def refuse_other_tokens(path: str, tokenizer: PreTrainedTokenizerBase, location: str) -> None:
    """Raise UserError where a model means other tokens by the policy's ids."""
    if reason := other_tokens(path, tokenizer):
        raise UserError(f"{path} has another tokenizer: {reason}.", location=location,
                        hint="It is asked about the policy's ids: take one with the same tokenizer.")  # fmt: skip

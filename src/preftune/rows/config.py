"""[data] of a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, field

from preftune.table import FromPython, Table, about

if TYPE_CHECKING:
    Source = str | Sequence[str] | Iterable[Mapping[str, object]]
else:
    Source = str | tuple[str, ...]  # what a file may hold


def is_rows(value: object) -> bool:
    """Whether it is an iterable of something else than names of files; what each row holds is not looked at."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        return False
    return not isinstance(value, list | tuple) or not all(isinstance(item, str | PathLike) for item in value)


def rows_given(rows: Iterable[Mapping[str, object]]) -> str:
    """What a record says in place of them."""
    return f"({len(rows)} rows given in Python)" if isinstance(rows, Sized) else "(rows given in Python)"


ROWS = FromPython("a list or other iterable of mappings, such as one split of a data set", is_rows, rows_given)
FILES = "File, files, pattern (rows/*.jsonl) or hub name of the rows: .jsonl, .json, .csv, .tsv, .parquet, also .gz."
PEERS_TRAIN = (
    "train_dataset dataset_name dataset datasets dataset_path data_files train_file pretraining_dataset prompt_data"
)
TEMPLATE = "File with a chat template (Jinja), if it is not the tokenizer's own."
SHARES = (
    "How much of each file of `train` an epoch takes: 0.5 half of its prompts, always the same; 2 each row twice; 1.5 "
    "each row once, and those of half of its prompts twice."
)
PEERS_SHARES = "interleave_probs dataset_weights dataset_probs mixture_weights prompt_data_probs fraction max_samples "
PEERS_SHARES += "max_train_samples"
HOLDOUT = "Share of the prompts to hold out if `evaluate` is not given; the seed does not change which."
COLUMNS = 'Other names of keys: `{is_safe = "label"}` reads is_safe as label, `{idx = ""}` leaves idx out.'
SYSTEM = "System text of conversations that have none of their own."
PEERS_SYSTEM = "default_system system_prompt default_system_message system_message system_text"
OPTIONS = "What the chat template is told beside the turns, such as `{enable_thinking = false}`."
MAX_TOKENS = "Longest prompt with one response, in tokens; 1024, or the model's positions if fewer."
TOO_LONG = (
    "skip: leave longer rows out; cut: drop the response's end, and then no end token is added; split: as skip, but a "
    "`text` alone becomes several rows."
)
CONTROL_TOKENS = (
    "What control tokens in the text of rows are: tokens, as where a template has written it, or text, which is their "
    "letters. Where nothing is said they are text, and refused if most rows of plain text have some."
)
TURNS = "Turns of the assistant in a conversation to imitate that are learned from: all of them, or the last."
RANKINGS = "Pairs of a ranking: all of different rank, or the best against each other response."
MAX_SKIPPED = "Largest share of unusable rows (too long ones aside) before the run refuses."


class Data(Table, frozen=True):
    """[data] Rows to learn from and how they become tokens."""

    train: Annotated[Source, about(FILES, also=PEERS_TRAIN, location=True, python=ROWS)] = ""
    shares: Annotated[tuple[Annotated[float, Meta(gt=0, le=100)], ...] | None, about(SHARES, also=PEERS_SHARES)] = None
    evaluate: Annotated[
        Source | None,
        about("Held-out rows, in the same forms.", also="eval_dataset test_datasets", location=True, python=ROWS),
    ] = None
    holdout: Annotated[float, about(HOLDOUT, also="test_size val_size val_set_size test_split_size", ge=0, lt=1)] = 0.0
    columns: Annotated[dict[str, str | None], about(COLUMNS)] = field(default_factory=dict)
    system: Annotated[str | None, about(SYSTEM, also=PEERS_SYSTEM)] = None
    template: Annotated[
        str | None,
        about(TEMPLATE, also="chat_template chat_template_path chat_template_jinja tool_format", location=True),
    ] = None
    template_options: Annotated[
        dict[str, Any], about(OPTIONS, also="chat_template_kwargs enable_thinking preserve_thinking")
    ] = field(default_factory=dict)
    max_tokens: Annotated[
        Annotated[int, Meta(ge=2)] | None,
        about(MAX_TOKENS, also="max_length max_seq_length cutoff_len sequence_len eval_sequence_len model_max_length"),
    ] = None
    turns: Annotated[Literal["all", "last"], about(TURNS, also="assistant_only_loss mask_history")] = "all"
    rankings: Annotated[Literal["all", "best"], about(RANKINGS)] = "all"
    too_long: Annotated[
        Literal["skip", "cut", "split"], about(TOO_LONG, also="truncation_mode excess_length_strategy")
    ] = "skip"
    control_tokens: Annotated[Literal["text", "tokens"] | None, about(CONTROL_TOKENS, also="split_special_tokens")] = (
        None
    )
    max_skipped: Annotated[float, about(MAX_SKIPPED, ge=0, le=1)] = 0.05

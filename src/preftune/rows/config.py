"""[data] of a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from preftune.table import FromPython, Table

if TYPE_CHECKING:
    Source = str | Sequence[str] | Iterable[Mapping[str, object]]
else:  # what a file may hold
    Source = str | tuple[str, ...]


def is_rows(value: object) -> bool:
    """Whether it is an iterable of something else than names of files; what each row holds is not looked at."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        return False
    return not isinstance(value, list | tuple) or not all(isinstance(item, str | PathLike) for item in value)


def rows_given(rows: Iterable[Mapping[str, object]]) -> str:
    """What a record says in place of them."""
    return f"({len(rows)} rows given in Python)" if isinstance(rows, Sized) else "(rows given in Python)"


ROWS = FromPython("a list or other iterable of mappings, such as one split of a data set", is_rows, rows_given)


class Data(Table, frozen=True):
    """[data] Rows to learn from and how they become tokens."""

    train: Annotated[
        Source,
        Meta(
            description="File, files or hub name of the rows: .jsonl, .json, .parquet, also .gz.",
            extra={"location": True, "python": ROWS, "also": ("train_file", "train_dataset", "dataset_name")},
        ),
    ] = ""
    evaluate: Annotated[
        Source | None,
        Meta(
            description="Held-out rows, in any of the same forms.",
            extra={"location": True, "python": ROWS, "also": ("eval_file", "eval_dataset", "validation_file")},
        ),
    ] = None
    holdout: Annotated[
        float,
        Meta(
            ge=0,
            lt=1,
            description="Share of the prompts to hold out if `evaluate` is not given; the seed does not change which.",
            extra={"also": ("test_size", "val_size", "eval_split")},
        ),
    ] = 0.0
    template: Annotated[
        str | None,
        Meta(
            description="File with a chat template (Jinja), if it is not the tokenizer's own.",
            extra={"location": True, "also": ("chat_template",)},
        ),
    ] = None
    max_tokens: Annotated[
        Annotated[int, Meta(ge=2)] | None,
        Meta(
            description="Longest prompt with one response, in tokens; 1024, or the model's positions if fewer.",
            extra={"also": ("max_length", "max_seq_length", "cutoff_len")},
        ),
    ] = None
    rankings: Annotated[
        Literal["all", "best"],
        Meta(description="Pairs of a ranking: all of different rank, or the best against each other response."),
    ] = "all"
    too_long: Annotated[
        Literal["skip", "cut"],
        Meta(
            description="skip: leave longer rows out; cut: drop the response's end, and then no end token is added.",
            extra={"also": ("truncation_mode", "truncation")},
        ),
    ] = "skip"
    max_skipped: Annotated[
        float,
        Meta(ge=0, le=1, description="Largest share of unusable rows (too long ones aside) before the run refuses."),
    ] = 0.05

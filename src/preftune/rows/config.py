"""[data] of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from preftune.table import Table


class Data(Table, frozen=True):
    """[data] Rows to learn from and how they become tokens."""

    train: Annotated[
        str | tuple[str, ...],
        Meta(description="File, files or hub name of the rows: .jsonl, .json, .parquet, also .gz."),
    ] = ""
    evaluate: Annotated[str | tuple[str, ...] | None, Meta(description="Held-out rows, in any of the same forms.")] = (
        None
    )
    holdout: Annotated[
        float,
        Meta(
            ge=0,
            lt=1,
            description="Share of the prompts held out where `evaluate` is not given, whatever the seed.",
        ),
    ] = 0.0
    template: Annotated[
        str | None, Meta(description="File with a chat template (Jinja), where not the tokenizer's own.")
    ] = None
    max_tokens: Annotated[
        Annotated[int, Meta(ge=2)] | None,
        Meta(description="Longest prompt with one response, in tokens; 1024, or the model's positions if fewer."),
    ] = None
    rankings: Annotated[
        Literal["all", "best"],
        Meta(
            description="Pairs that a ranking gives: every two of different rank, or the best against each other one."
        ),
    ] = "all"
    too_long: Annotated[
        Literal["skip", "cut"],
        Meta(description="skip: leave longer rows out; cut: drop the response's end, and then no end token is added."),
    ] = "skip"
    max_skipped: Annotated[
        float,
        Meta(ge=0, le=1, description="Largest share of unusable rows (too long ones aside) before the run refuses."),
    ] = 0.05

"""From a run's rows to its groups, with an account of every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from preftune.errors import Problem, UserError
from preftune.rows.account import TOO_LONG, Account, Counts, by_reason, refuse_too_many
from preftune.rows.config import Data
from preftune.rows.split import Rows
from preftune.tokens.groups import TokenGroup
from preftune.tokens.lengths import with_lengths
from preftune.tokens.tokenize import Tokenized, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prepared(Struct, frozen=True):
    """Groups to train on and to measure on, and the account of their rows."""

    train: list[TokenGroup]
    evaluate: list[TokenGroup]
    account: Account
    tokenized: dict[str, Tokenized]


def prepare(rows: Rows, data: Data, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Prepared:
    """Tokenize what was read. Raises UserError where too many rows are unusable, or none is left."""
    tokenized = {
        part: tokenize(part_rows, tokenizer, max_tokens=max_tokens, too_long=data.too_long)
        for part, part_rows in (("train", rows.train), ("evaluate", rows.evaluate))
        if part_rows
    }
    for part, reading in rows.readings.items():
        of_reading = [result for name, result in tokenized.items() if name == part or name not in rows.readings]
        skipped = [problem for result in of_reading for problem in result.skipped if problem.reason not in TOO_LONG]
        refuse_too_many([*reading.skipped, *skipped], reading.read, [*reading.files], data.max_skipped)
    for part, purpose in (("train", "train on"), ("evaluate", "measure on")):
        if part in tokenized and not tokenized[part].groups:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in _counts(tokenized[part].skipped).items())
            raise UserError(f"no row is left to {purpose} ({reasons}).", location=f"data.{part}",
                            hint=f"max_tokens is {max_tokens}; see `preftune check`.")  # fmt: skip
    groups = tokenized["train"].groups
    account = Account(
        train=_part("train", rows.train, tokenized, rows),
        evaluate=_part("evaluate", rows.evaluate, tokenized, rows),
        max_tokens=max_tokens,
        files={part: reading.files for part, reading in rows.readings.items()},
    )
    held_out = tokenized["evaluate"].groups if "evaluate" in tokenized else []
    return Prepared(groups, held_out, with_lengths(account, groups), tokenized)


def _part(part: str, part_rows: Sequence[object], tokenized: dict[str, Tokenized], rows: Rows) -> Counts | None:
    if part not in tokenized:
        return None
    reading, result = rows.readings.get(part), tokenized[part]
    unread, notes = (reading.skipped, reading.notes) if reading else ([], [])
    return Counts(
        read=len(part_rows) + len(unread),
        kept=len(result.groups),
        cut=result.cut,
        kinds=dict(Counter(group.kind for group in result.groups)),
        skipped=_counts([*unread, *result.skipped]),
        notes=tuple(str(note) for note in (*notes, *result.notes)),
    )


def _counts(problems: Sequence[Problem]) -> dict[str, int]:
    return {reason: len(of_reason) for reason, of_reason in by_reason(problems).items()}

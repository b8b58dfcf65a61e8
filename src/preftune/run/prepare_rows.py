"""From the files that a run names to its groups, with an account of every row."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from preftune.errors import Problem, UserError
from preftune.rows.config import Data
from preftune.rows.read import Reading, Tally, holdout, read, refuse_if_too_many
from preftune.rows.row import Row
from preftune.tokens.groups import TokenGroup
from preftune.tokens.lengths import summarize
from preftune.tokens.tokenizer import Tokenized, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_LONG = ("too_long", "prompt.too_long")


class Rows(Struct, frozen=True):
    """Rows as read, before any tokenizer."""

    train: list[Row]
    evaluate: list[Row]
    readings: dict[str, Reading]  # "train" and, where it has files of its own, "evaluate"

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the files of data.train and data.evaluate, in their order."""
        sums = {part: "".join(reading.files.values()) for part, reading in self.readings.items()}
        return {f"data.{part}": hashlib.sha256(joined.encode()).hexdigest() for part, joined in sums.items()}


class Prepared(Struct, frozen=True):
    """Groups to train on and to measure on; `account` is what data.json holds."""

    train: list[TokenGroup]
    evaluate: list[TokenGroup]
    account: dict[str, Any]
    tokenized: dict[str, Tokenized]


def read_rows(data: Data) -> Rows:
    """Read every file, refuse too many unusable rows, and hold rows out. Raises UserError."""
    if not data.train:
        raise UserError("no rows are named.", location="data.train", hint='Add train = "pairs.jsonl" below [data].')
    readings = {"train": read(data.train)}
    if data.evaluate is not None:
        if data.holdout:
            raise UserError(
                "has no effect where data.evaluate is given.", location="data.holdout", hint="Remove one of the two."
            )
        readings["evaluate"] = read(data.evaluate)
        same = set(readings["train"].files.values()) & set(readings["evaluate"].files.values())
        if same:
            raise UserError(
                "is a training file too.", location="data.evaluate", hint="Measure on rows that are not trained on."
            )
        readings["evaluate"].notes.extend(_trained_too(readings["train"].rows, readings["evaluate"].rows))
    for reading in readings.values():
        refuse_if_too_many(reading, data.max_skipped)
    train, held_out = readings["train"].rows, readings["evaluate"].rows if "evaluate" in readings else []
    if data.holdout:
        train, held_out = holdout(train, data.holdout)
    return Rows(train, held_out, readings)


def _trained_too(train: Sequence[Row], evaluate: Sequence[Row]) -> list[Problem]:
    tally, trained = Tally(), {row.prompt for row in train}
    for row in evaluate:
        if row.prompt in trained:
            tally.add("prompt.trained", "the prompt is trained on too", row.place)
    return tally.problems()


def prepare(rows: Rows, data: Data, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Prepared:
    """Tokenize what was read. Raises UserError where too many rows are unusable, or none is left."""
    done = {
        part: tokenize(mine, tokenizer, max_tokens=max_tokens, too_long=data.too_long)
        for part, mine in (("train", rows.train), ("evaluate", rows.evaluate))
        if mine
    }
    for part, reading in rows.readings.items():
        mine = [found for name, found in done.items() if name == part or name not in rows.readings]
        later = [problem for found in mine for problem in found.skipped if problem.reason not in TOO_LONG]
        if later:
            skipped = [*reading.skipped, *later]
            refuse_if_too_many(msgspec.structs.replace(reading, skipped=skipped), data.max_skipped)
    for part, purpose in (("train", "train on"), ("evaluate", "measure on")):
        if part in done and not done[part].groups:
            raise UserError(f"no row is left to {purpose} ({_told(_count(done[part].skipped))}).", location=f"data.{part}",
                            hint=f"max_tokens is {max_tokens}; see `preftune check`.")  # fmt: skip
    groups = done["train"].groups
    account = {part: _account(part, done, rows) for part in ("train", "evaluate")}
    account |= msgspec.to_builtins(summarize(groups))
    account |= {"max_tokens": max_tokens, "files": {part: reading.files for part, reading in rows.readings.items()}}
    return Prepared(groups, done["evaluate"].groups if "evaluate" in done else [], account, done)


def _account(part: str, done: dict[str, Tokenized], rows: Rows) -> dict[str, Any] | None:
    if part not in done:
        return None
    reading = rows.readings.get(part)
    before = reading.skipped if reading else []
    skipped = _count([*before, *done[part].skipped])
    mine = rows.train if part == "train" else rows.evaluate
    notes = [*(reading.notes if reading else []), *done[part].notes]
    return {
        "read": len(mine) + len(before), "kept": len(done[part].groups), "cut": done[part].cut,
        "kinds": dict(Counter(group.kind for group in done[part].groups)),
        "skipped": skipped, "notes": [str(note) for note in notes],
    }  # fmt: skip


def _count(problems: Sequence[Problem]) -> dict[str, int]:
    return dict(Counter(problem.reason for problem in problems).most_common())


def _told(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in reasons.items())

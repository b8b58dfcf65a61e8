"""Which rows a run trains on, and which it holds out to measure on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import filterfalse

from msgspec import Struct
from msgspec.structs import replace

from preftune.errors import Problem, UserError, without_effect
from preftune.rows.account import Tally, refuse_too_many, unusable
from preftune.rows.asked import NOTHING, Asked
from preftune.rows.config import Data
from preftune.rows.read import Reading, names_of, read
from preftune.rows.row import Row, shared_by, with_last_turn
from preftune.rows.shares import first_prompts
from preftune.rows.sources import files_of, on_hub, ordinary_file
from preftune.rows.system import with_text, without_text

FEWEST_PROMPTS = 10


class Rows(Struct, frozen=True):
    """The rows of a run, before any tokenizer.

    readings: of "train" and, where data.evaluate is given, of "evaluate".
    """

    train: list[Row]
    evaluate: list[Row]
    readings: dict[str, Reading]

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the files of data.train and data.evaluate, in their order."""
        joined = {part: "".join(reading.files.values()) for part, reading in self.readings.items()}
        return {f"data.{part}": hashlib.sha256(digests.encode()).hexdigest() for part, digests in joined.items()}


def read_rows(data: Data, asked: Asked = NOTHING) -> Rows:
    """Read every source, refuse too many unusable rows, hold rows out, and give each conversation its system text.
    asked: columns that functions of rewards read. Raises UserError."""
    readings = _readings(data, asked)
    train, held_out = readings["train"].rows, readings["evaluate"].rows if "evaluate" in readings else []
    if data.turns == "last":
        train, held_out = ([*map(with_last_turn, rows)] for rows in (train, held_out))
    if data.holdout:
        train, held_out = holdout(train, data.holdout)
        readings["train"] = _noted(readings["train"], [_held_out_note(held_out)])
    if data.system is not None:  # after the holdout, so that which prompts are held out does not depend on it
        train, notes = with_text(train, data.system)
        held_out, more = with_text(held_out, data.system)
        of_evaluate = "evaluate" if "evaluate" in readings else "train"
        readings["train"] = _noted(readings["train"], notes)
        readings[of_evaluate] = _noted(readings[of_evaluate], more)
    return Rows(train, held_out, readings)


def refuse_missing_rows(data: Data) -> None:
    """Raise UserError where no rows are named, or some that are not there: before all that is slow to load."""
    _refuse_keys(data)
    problems: list[Problem] = []
    for name in (*names_of(data.train), *names_of(() if data.evaluate is None else data.evaluate)):
        try:
            for file in filterfalse(on_hub, files_of(name)):
                ordinary_file(file)
        except UserError as error:
            problems += error.problems
        except OSError:  # which is told where the file is read
            continue
    if problems:
        raise UserError(problems)


def _readings(data: Data, asked: Asked) -> dict[str, Reading]:
    """What data.train and data.evaluate hold. Raises UserError."""
    _refuse_keys(data)
    readings = {"train": read(data.train, columns=data.columns, shares=data.shares, asked=asked)}
    if data.evaluate is not None:
        if data.holdout:
            message = "has no effect where data.evaluate is given."
            raise UserError(message, location="data.holdout", hint="Remove one of the two.")
        readings["evaluate"] = read(data.evaluate, columns=data.columns, asked=asked)
        if set(readings["train"].files.values()) & set(readings["evaluate"].files.values()):
            hint = "Measure on rows that are not trained on."
            raise UserError("is a training file too.", location="data.evaluate", hint=hint)
    if data.system is not None:  # a row that begins with it has the prompt of one that is to get it
        readings = {part: replace(each, rows=without_text(each.rows, data.system)) for part, each in readings.items()}
    if "evaluate" in readings:
        trained = _trained_prompts(readings["train"].rows, readings["evaluate"].rows)
        readings["evaluate"] = _noted(readings["evaluate"], trained)
    for reading in readings.values():
        refuse_too_many(unusable(reading.skipped), reading.read, [*reading.files], data.max_skipped)
    return readings


def _noted(reading: Reading, notes: Sequence[Problem]) -> Reading:
    return replace(reading, notes=[*reading.notes, *notes])


def _refuse_keys(data: Data) -> None:
    """Raise UserError where data.train names nothing, data.system says nothing, or data.shares has not one number for
    each file of data.train."""
    if isinstance(data.train, str | Sequence) and not data.train:
        raise UserError("no rows are named.", location="data.train", hint='Add train = "pairs.jsonl" below [data].')
    if data.system is not None and not data.system.strip():
        raise without_effect("the text is blank", "data.system")
    if data.shares is None:
        return
    names = names_of(data.train)
    files = f"{len(names)} file{'s' if len(names) > 1 else ''}" if names else "rows given in Python"
    if (count := len(data.shares)) != len(names or [data.train]):
        numbers = "1 number" if count == 1 else f"{count} numbers"
        raise UserError(f"has {numbers} for the {files} of data.train.", location="data.shares",
                        hint="Give one for each, in their order; 1 takes each row once.")  # fmt: skip
    files_named = [file for name in names for file in files_of(name)]
    if twice := next((file for file in files_named if files_named.count(file) > 1), ""):
        raise UserError(f"{twice} is named twice.", location="data.train",
                        hint="Name it once; data.shares takes its rows several times.")  # fmt: skip


def _trained_prompts(train: Sequence[Row], evaluate: Sequence[Row]) -> list[Problem]:
    tally, trained = Tally(), {shared_by(row) for row in train}
    for row in evaluate:
        if shared_by(row) in trained:
            tally.add("prompt.trained", "the prompt is trained on too", row.place)
    return tally.problems()


def _held_out_note(rows: Sequence[Row]) -> Problem:
    prompts = len({shared_by(row) for row in rows})
    text = f"{len(rows)} rows of {prompts} prompt{'s' if prompts > 1 else ''} are held out"
    if prompts < FEWEST_PROMPTS:
        text += ", which are too few to tell how far an accuracy would be off on other prompts"
    return Problem(f"{text}.", "data.holdout")


def holdout(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """(train, held out): `share` of the prompts, at least one, with all their rows; the order is kept.

    Which prompts are held out depends on the prompts alone, not on their order, on how often one occurs, or on the
    run's seed: runs with different seeds are measured on the same rows.
    """
    prompts = len({shared_by(row) for row in rows})
    if prompts < 2:
        raise UserError("all rows have one prompt, so none can be held out.", location="data.holdout",
                        hint="Name held-out rows in data.evaluate.")  # fmt: skip
    held_out = first_prompts(rows, min(max(1, round(share * prompts)), prompts - 1))
    train = [row for row in rows if shared_by(row) not in held_out]
    return train, [row for row in rows if shared_by(row) in held_out]

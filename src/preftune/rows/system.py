"""A system text for rows that have none of their own. Held by tests/rows/test_system.py."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from preftune.errors import Problem, UserError
from preftune.rows.account import Tally
from preftune.rows.row import TOLD, Message, Row

SYSTEM = ("system", "developer")  # roles of a text that instructs the model


def _first_turn(prompt: tuple[Message, ...]) -> int:
    """Where the first turn stands that is said; what the template is told comes before it."""
    return next((place for place, turn in enumerate(prompt) if turn.role not in TOLD), len(prompt))


def without_text(rows: Sequence[Row], text: str) -> list[Row]:
    """The rows, without the system turn of those that begin with just this text: they are rows that have none."""
    bare: list[Row] = []
    for row in rows:
        if not isinstance(row.prompt, str):
            place = _first_turn(row.prompt)
            if row.prompt[place : place + 1] == (Message("system", text),):
                row = replace(row, prompt=(*row.prompt[:place], *row.prompt[place + 1 :]))
        bare.append(row)
    return bare


def with_text(rows: Sequence[Row], text: str) -> tuple[list[Row], list[Problem]]:
    """The rows, each of which begins with this system text unless it has one of its own, and a note on how many have.

    Raises UserError where rows are plain text, in which there is no turn for it.
    """
    plain = [row for row in rows if isinstance(row.prompt, str)]
    if plain:
        message = f"{len(plain)} of {len(rows)} rows are plain text, which is continued as it stands and has no place "
        raise UserError(f"{message}for data.system.", location=str(plain[0].place),
                        hint="Write their prompts as messages, or it into their text.")  # fmt: skip
    tally, instructed = Tally(), []
    for row in rows:
        assert not isinstance(row.prompt, str)
        place = _first_turn(row.prompt)
        if any(turn.role in SYSTEM for turn in row.prompt[place : place + 1]):
            tally.add("system.own", "the row keeps its own system text in place of data.system", row.place)
            instructed.append(row)
        else:
            instructed.append(replace(row, prompt=(*row.prompt[:place], Message("system", text), *row.prompt[place:])))
    return instructed, tally.problems()

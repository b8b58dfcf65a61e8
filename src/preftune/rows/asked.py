"""Columns of rows that a function of the user's reads beside prompt and answer.

Held by tests/rows/test_asked.py.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from preftune.rows.parse import MalformedRow, describe


class Asked(Struct, frozen=True):
    """Which columns are read, by their names in the rows after data.columns.

    needed: those that some row of each file must have; optional: others, read where a row has them; every: whether all
    that a row has are read; but: names that are no columns then. drawn: whether responses are drawn to the rows, whose
    own are not read.
    """

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    every: bool = False
    but: tuple[str, ...] = ()
    drawn: bool = False

    @property
    def named(self) -> frozenset[str]:
        """The columns that are read by their names."""
        return frozenset((*self.needed, *self.optional))

    def text_of(self, value: Mapping[str, object]) -> str:
        """The columns of a record as JSON, which nobody who reads them can change; empty where nothing is asked.

        Raises MalformedRow where JSON cannot hold one.
        """
        if not (self.every or self.named):
            return ""
        columns = {
            key: entry for key, entry in value.items() if entry is not None and (self.every or key in self.named)
        }
        for key, entry in columns.items():
            try:
                json.dumps(entry)
            except TypeError as error:
                hint = f'Make it text or a number, or leave it out: data.columns={{"{key}": ""}}.'
                raise MalformedRow(f'"{key}" holds {describe(entry)}, which is nothing of JSON.', hint) from error
        return json.dumps(columns, ensure_ascii=False)

    def from_text(self, columns: str) -> dict[str, object]:
        """What a function gets of the columns that `text_of` has written: None for a needed one that the row lacks."""
        values = json.loads(columns) if columns else {}
        chosen = {key: entry for key, entry in values.items() if key in self.named or self.every}
        return dict.fromkeys(self.needed) | {key: entry for key, entry in chosen.items() if key not in self.but}

    def absent(self, records: Collection[Mapping[str, object]]) -> list[str]:
        """The needed columns that no record has."""
        return [key for key in self.needed if not any(value.get(key) is not None for value in records)]


NOTHING = Asked()


def all_of(asked: Iterable[Asked]) -> Asked:
    """What several functions read together."""
    several = tuple(asked)
    needed = dict.fromkeys(key for each in several for key in each.needed)
    optional = dict.fromkeys(key for each in several for key in each.optional if key not in needed)
    return Asked(tuple(needed), tuple(optional), any(each.every for each in several))

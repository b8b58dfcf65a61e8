"""How much of each file an epoch takes: a share of its prompts, or all of its rows several times.

Held by tests/rows/test_shares.py.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from msgspec.structs import replace

from preftune.errors import Problem
from preftune.rows.row import Row, responses, shared_by

SHARE = "share"  # the reason why a row is left out that data.shares does not take


def first_prompts(rows: Sequence[Row], count: int, purpose: str = "") -> set[Hashable]:
    """`count` of the rows' prompts, those whose text has the smallest hashes.

    Which ones depends on the prompts alone, not on their order, on how often one occurs, or on the run's seed; more of
    them include fewer. Prompts that are chosen for two purposes have nothing to do with each other.
    """
    hashes = {shared_by(row): _hash(row, purpose) for row in rows}
    return set(sorted(hashes, key=lambda prompt: hashes[prompt])[:count])


def _hash(row: Row, purpose: str) -> bytes:
    parts: list[str] = [purpose] if purpose else []
    for said in [row.prompt] if row.prompt else responses(row):
        if isinstance(said, str):
            parts.append(said)
            continue
        for turn in said:
            parts += turn.role, turn.content, *filter(None, [turn.thought, turn.beside])
    return hashlib.sha256("\0".join(parts).encode()).digest()


def take(
    rows: Sequence[Row], entries: Mapping[str, str], shares: Mapping[str, float]
) -> tuple[list[Row], list[Problem], Problem]:
    """The rows that an epoch takes, each with how often, in their order; a problem for each row that is left out; and a
    note on what an epoch then is.

    entries: the entry of data.train that each file belongs to; shares: of each entry. A share of 2.25 takes each row
    twice, and those of a quarter of the entry's prompts once more; one below 1 takes one prompt at least.
    """
    of_entry: dict[str, list[Row]] = {entry: [] for entry in shares}
    for row in rows:
        of_entry[entries[row.place.file]].append(row)
    once_more = {entry: _once_more(of_entry[entry], share) for entry, share in shares.items()}
    taken: list[Row] = []
    left_out: list[Problem] = []
    for row in rows:
        entry = entries[row.place.file]
        if times := int(shares[entry]) + (shared_by(row) in once_more[entry]):
            taken.append(replace(row, times=times))
        else:
            left_out.append(Problem("data.shares does not take it.", str(row.place), reason=SHARE))
    usable = {entry: len(rows) for entry, rows in of_entry.items()}
    return taken, left_out, _note([(entries[row.place.file], row.times) for row in taken], usable)


def _once_more(rows: Sequence[Row], share: float) -> set[Hashable]:
    """The prompts that are taken once more than the whole part of a share says."""
    whole, prompts = int(share), len({shared_by(row) for row in rows})
    return first_prompts(rows, max(round((share - whole) * prompts), 0 if whole else 1), SHARE)


def _note(taken: Sequence[tuple[str, int]], usable: Mapping[str, int]) -> Problem:
    """What an epoch is. taken: each row's entry, and how often it is taken; usable: rows of each entry."""
    rows, times = Counter(entry for entry, _ in taken), Counter[str]()
    for entry, often in taken:
        times[entry] += often
    parts, total = [], times.total() or 1  # a file may have no usable row, which is refused with the others
    for entry, count in usable.items():
        in_all = f", {times[entry]:,} times in all" if times[entry] > rows[entry] else ""
        parts.append(f"{rows[entry]:,} of {count:,} rows of {entry}{in_all} ({times[entry] / total:.0%})")
    return Problem(f"an epoch takes {'; '.join(parts)}.", "data.shares")

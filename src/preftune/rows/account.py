"""How rows are accounted for: what was read, kept and skipped, and why.

Equal problems are counted, so that each is reported once with its number of rows and the first places.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from msgspec import Struct

from preftune.errors import Problem, UserError
from preftune.rows.parse import MalformedRow
from preftune.rows.row import Place
from preftune.rows.shares import SHARE

TOO_LONG = ("too_long", "prompt.too_long")
BLAMELESS = (*TOO_LONG, SHARE)  # reasons to leave a row out that say nothing against its quality
NAMED = 3  # places named in one note


class Counts(Struct, frozen=True):
    """Rows of one part: read, kept (and of which kinds), with a response cut, and skipped by reason.

    times: how often an epoch takes a row that is kept, on average.
    """

    read: int = 0
    kept: int = 0
    times: float = 1.0
    cut: int = 0
    kinds: dict[str, int] = {}
    skipped: dict[str, int] = {}
    notes: tuple[str, ...] = ()


class Bin(Struct, frozen=True):
    """The number of lengths of at most `to` tokens that are more than the bin before it holds."""

    to: float
    count: int


class Spread(Struct, frozen=True):
    """Distribution of lengths, in tokens; the bins double in width from 8 on."""

    median: float | None = None
    p90: float | None = None
    max: float | None = None
    bins: tuple[Bin, ...] = ()


class Texts(Struct, frozen=True):
    """What the training rows' texts show.

    repeated: pairs that repeat another pair; contradictory: those of them that prefer the other response; twins: share
    of pairs whose responses differ in one word; unclosed: of each side, the share of responses without closing
    punctuation; piled: the share that has exactly the greatest length of its side, and none.
    """

    repeated: int = 0
    contradictory: int = 0
    twins: float = 0.0
    unclosed: dict[str, float] = {}
    piled: dict[str, float] = {}


class Account(Struct, frozen=True, kw_only=True):
    """What data.json holds. Every field has a default, so that records of earlier versions open too.

    lengths: of `prompt`, `chosen` and `rejected`, as far as there are any; chosen_longer: share of pairs whose chosen
    response has more tokens, None without pairs; tokens_naive: each response with its own copy of the prompt;
    tokens_distinct: each prompt once a group; max_tokens: the longest prompt with one response that was allowed,
    whether the configuration named it or not; files: SHA-256 of each file of each part; held_out_trained: share of the
    held-out rows whose prompt is trained on too.
    """

    train: Counts | None = None
    evaluate: Counts | None = None
    lengths: dict[str, Spread | None] = {}
    chosen_longer: float | None = None
    tokens_naive: int | None = None
    tokens_distinct: int | None = None
    max_tokens: int | None = None
    files: dict[str, dict[str, str]] = {}
    held_out_trained: float | None = None
    texts: Texts | None = None


class Tally:
    """Remarks on rows, counted by reason."""

    def __init__(self) -> None:
        self._remarks: dict[str, tuple[str, list[str]]] = {}

    def add(self, reason: str, message: str, place: Place) -> None:
        """message: what holds for each such row, such as `the prompt is empty`; the first wording stays."""
        places = self._remarks.setdefault(reason, (message, []))[1]
        if not places or places[-1] != str(place):  # several texts of one row may have the same remark
            places.append(str(place))

    def problems(self) -> list[Problem]:
        """One problem for each reason, at its first place."""
        remarks = self._remarks.items()
        return [Problem(message + _count(places), places[0], reason=reason) for reason, (message, places) in remarks]


def _count(places: Sequence[str]) -> str:
    """` (12 rows; also b:7, b:9).` where there is more than the first place."""
    if len(places) < 2:
        return "."
    return f" ({len(places)} rows; also {', '.join(places[1:NAMED])}{', ...' if len(places) > NAMED else ''})."


def by_reason(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    """The problems by their reason, the most frequent reason first."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.reason, []).append(problem)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def merge_malformed(
    rows: Sequence[tuple[MalformedRow, Place]], key: Callable[[MalformedRow], Hashable]
) -> list[Problem]:
    """One problem for all rows whose `key` is equal: what is wrong with the first, and how many more there are."""
    groups: dict[Hashable, list[tuple[MalformedRow, Place]]] = {}
    for error, place in rows:
        groups.setdefault(key(error), []).append((error, place))
    problems = []
    for (error, place), *rest in groups.values():
        more = ""
        if rest:
            last = rest[-1][1]
            more = f" (and {len(rest)} more rows, up to {last.line if last.file == place.file else last})"
        problems.append(Problem(error.message + more, str(place), error.hint, error.reason))
    return problems


def unusable(skipped: Sequence[Problem]) -> list[Problem]:
    """Those that were left out because something is wrong with them."""
    return [problem for problem in skipped if problem.reason not in BLAMELESS]


def refuse_too_many(skipped: Sequence[Problem], read: int, files: Sequence[str], allowed: float) -> None:
    """Raise UserError where more than the share `allowed` of the rows read was skipped, or no row remains."""
    share, remaining = len(skipped) / max(read, 1), read - len(skipped)
    if share <= allowed and remaining:
        return
    hint = f"Mend the file, or allow it: data.max_skipped={min(1.0, share + 0.005):.2f}." if remaining else ""
    limit = f"{allowed:.0%} are allowed" if remaining else "none is left"
    message = f"{len(skipped)} of {read} rows ({share:.1%}) cannot be used; {limit}."
    listed = [
        Problem(
            f"{reason}: {first.message[:-1]}{_count([p.location for p in (first, *rest)])}",
            first.location,
            reason=reason,
        )
        for reason, (first, *rest) in by_reason(skipped).items()
    ]
    raise UserError([Problem(message, ", ".join(files), hint), *listed])

"""The one error a user meets: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

USAGE, NON_FINITE, CORRUPT, BUG, IO, STOPPED, INTERRUPTED = 2, 3, 65, 70, 74, 75, 130
MOST = 300  # characters of what another library says
SHOWN = 20  # problems listed in one error; the rest are counted


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the input.

    where: `prefs.jsonl:17` or a key such as `objective.beta`; what: one sentence; mend: what to do;
    reason: short code under which equal problems are counted, such as `pair.identical`.
    """

    message: str
    location: str = ""
    hint: str = ""
    reason: str = ""

    def __str__(self) -> str:
        head = f"{self.location}: {self.message}" if self.location else self.message
        return f"{head} {self.hint}" if self.hint else head


class UserError(Exception):
    """Something the user can mend. `code` is the process's exit code (see the constants above)."""

    def __init__(
        self, message: str | Sequence[Problem], *, location: str = "", hint: str = "", code: int = USAGE
    ) -> None:
        self.problems = [Problem(message, location, hint)] if isinstance(message, str) else list(message)
        self.code = code
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:SHOWN]]
        more = len(self.problems) - SHOWN
        return "\n".join([*lines, f"... and {more} more like these."] if more > 0 else lines)


class PeerRankError(UserError):
    """An error that another process of this run tells the user; this one only ends, with the same code."""


def third_party_message(error: Exception) -> str:
    """What another library says, as one sentence: its first line, or its class where that line leads to others."""
    line = str(error).strip().partition("\n")[0].strip()
    return f"{type(error).__name__ if not line or line.endswith(':') else line[:MOST].rstrip('.')}."


def nearest(word: str, known: Sequence[str]) -> str:
    """`Did you mean "beta"?`, or an empty string where nothing is near."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=3, cutoff=0.6)
    close.sort(key=lambda one: not _swapped(one, word))  # two letters in the wrong order are the likelier slip
    return f'Did you mean "{close[0]}"?' if close else ""


def _swapped(one: str, other: str) -> bool:
    """Whether the two differ by the order of two letters side by side."""
    at = [i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
    return len(one) == len(other) and len(at) == 2 and at[1] == at[0] + 1 and sorted(one) == sorted(other)

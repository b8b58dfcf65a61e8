"""The one error that a user meets: what is wrong, where, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

USAGE, NON_FINITE, CORRUPT, BUG, IO, STOPPED, INTERRUPTED = 2, 3, 65, 70, 74, 75, 130
LONGEST = 300  # characters of another library's message
LISTED = 20  # problems listed in one error; the rest are counted


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the input.

    message: one sentence; location: `prefs.jsonl:17` or a key such as `objective.beta`; hint: how to mend it;
    reason: short code under which equal problems are counted, such as `pair.identical`.
    """

    message: str
    location: str = ""
    hint: str = ""
    reason: str = ""

    def __str__(self) -> str:
        """The problem as one line, whatever the names in it hold."""
        head = f"{self.location}: {self.message}" if self.location else self.message
        return printable(f"{head} {self.hint}" if self.hint else head)


class UserError(Exception):
    """Something that the user can mend. `code` is the process's exit code (see the constants above)."""

    def __init__(
        self, message: str | Sequence[Problem], *, location: str = "", hint: str = "", code: int = USAGE
    ) -> None:
        self.problems = [Problem(message, location, hint)] if isinstance(message, str) else list(message)
        self.code = code
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:LISTED]]
        more = len(self.problems) - LISTED
        return "\n".join([*lines, f"... and {more} more like these."] if more > 0 else lines)


class PeerRankError(UserError):
    """Another rank reports this error; exit quietly with its code."""


def third_party_message(error: Exception) -> str:
    """Another library's error as one sentence: its first line, or its class where that line only introduces others."""
    line = str(error).strip().partition("\n")[0].strip()
    return f"{type(error).__name__ if not line or line.endswith(':') else line[:LONGEST].rstrip('.')}."


def nearest(word: str, known: Sequence[str]) -> str:
    """`Did you mean "beta"?`, or an empty string where no known word is similar."""
    from difflib import get_close_matches

    similar = get_close_matches(word, known, n=3, cutoff=0.6)
    similar.sort(key=lambda candidate: not _are_swapped(candidate, word))  # two swapped letters are the likelier slip
    return f'Did you mean "{similar[0]}"?' if similar else ""


def _are_swapped(left: str, right: str) -> bool:
    """Whether the two words differ only by the order of two neighboring letters."""
    differ = [i for i, letters in enumerate(zip(left, right, strict=False)) if len(set(letters)) == 2]
    return len(differ) == 2 and differ[1] == differ[0] + 1 and sorted(left) == sorted(right)


def printable(text: str, allowed: str = "") -> str:
    """Text whose control characters, which data could use to take over a terminal, are spelled out.

    allowed: "\\n" where the text may have lines of its own.
    """
    return "".join(c if c in allowed or c.isprintable() or c == "\u00a0" else ascii(c)[1:-1] for c in text)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host, for which torch has no class."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    texts = ("can't allocate memory", "out of memory", "bad_alloc", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def without_effect(why: str, key: str, hint: str = "Remove it.") -> UserError:
    """The error about a key that does nothing."""
    return UserError(f"{why}, so the key has no effect.", location=key, hint=hint)

"""Checks of a response against its task's answer. None runs code of a response, and each takes time linear in its text.

Held by tests/rollout/test_verifiers.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from preftune.errors import UserError
from preftune.rollout.written_numbers import of_answer, of_response

Verifier = Callable[[str, str | None], float]


def exact(response: str, answer: str | None) -> float:
    """Whether both are the same text, white space around it aside."""
    return float(response.strip() == (answer or "").strip())


def number(response: str, answer: str | None) -> float:
    """Whether the last number of the response, or the one in its last \\boxed{}, is the answer's: `#### 1,000` and
    `It is 1000.0.` agree; a response without one is wrong."""
    value = of_response(response)
    return float(value is not None and value == of_answer(answer or "")[0])


class Pattern:
    """What a regular expression finds in a response, by RE2, which has no back-references and so no slow cases.

    With the group (?P<answer>...) of the first match, it is held against the answer; without groups it has to match.
    Raises UserError for a pattern that is none, or that has other groups.
    """

    def __init__(self, pattern: str, location: str = "reward.pattern") -> None:
        from pyarrow import ArrowInvalid, array, compute, string

        extract_regex, match_substring_regex = compute.extract_regex, compute.match_substring_regex  # pyright: ignore[reportAttributeAccessIssue]
        self._array, self._string = array, string()
        self._extract, self._match, self._pattern = extract_regex, match_substring_regex, pattern
        try:
            match_substring_regex(array([""], string()), pattern=pattern)
        except ArrowInvalid as error:
            raise UserError(f"{error}.", location=location, hint="The syntax is RE2's.") from error
        try:
            names = extract_regex(array([""], string()), pattern=pattern).type.names
        except ArrowInvalid:  # there is a group without a name, or no group at all
            names = [""] if _has_groups(pattern) else []
        if names not in ([], ["answer"]):
            hint = "Write (?P<answer>...) around what is compared, and (?:...) elsewhere."
            raise UserError("the pattern has other groups than one named answer.", location=location, hint=hint)
        self.reads_answer = bool(names)

    def __call__(self, response: str, answer: str | None) -> float:
        texts = self._array([response.encode("utf-8", "replace").decode()], self._string)
        if not self.reads_answer:
            return float(self._match(texts, pattern=self._pattern)[0].as_py())
        group = self._extract(texts, pattern=self._pattern)[0].as_py()
        return exact(group["answer"] or "", answer) if group else 0.0


def _has_groups(pattern: str) -> bool:
    """Whether a pattern has a group; one that Python cannot read is taken to have."""
    try:
        return re.compile(pattern).groups > 0
    except (re.error, OverflowError, RecursionError):
        return True


def verifier(name: str, pattern: str | None) -> tuple[Verifier, bool]:
    """The verifier of a configuration, and whether it reads a task's answer. Raises UserError for a wrong pattern."""
    if name == "regex":
        checked = Pattern(pattern or "")
        return checked, checked.reads_answer
    return {"exact": exact, "number": number}[name], True


def unusable_answer(name: str, answer: str | None) -> str:
    """Why no response can agree with the answer, or an empty string."""
    if answer is None:
        return "the task has no answer."
    why = of_answer(answer)[1] if name == "number" else ""
    return f"the task's answer {why}." if why else ""

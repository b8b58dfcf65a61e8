"""The number that a text gives as its answer, as people and models write numbers, LaTeX included.

A number that is part of an expression (a root, a power, 3x, 5/0) or that is not written as in English (1.000,5) has no
value, and nothing agrees with it: a wrong reward teaches more than none. The time is linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice

LONGEST = 1000  # digits of a number that is compared
ROOT, SYMBOL = "\xa4", "\xa7"  # stand for \sqrt{3} as a whole, and for \pi and the like
UNITS = frozenset("mgshlLNJWVACF")  # letters that may follow a number directly; any other is a variable
ARGUMENT = r"(?:\{(?:[^{}]|\{[^{}]*+\})*+\}|\d)"
TIDY = [
    (re.compile(pattern), by)
    for pattern, by in (
        ("[\u2212\u2013\ufe63\uff0d]", "-"),
        (r"(?<=\d)(?:\\[,!;: ]|\{,\}|,\\!|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))", ","),  # 10\,000 and 10{,}000
        (r"[^\S\n]+", " "),
        (r"\\\\(?:\[[^\[\]\n]*+\])?|\\(?:begin|end|tag) ?\{[^{}\n]*+\}", "\n"),
        (r"\\(?:text|math|operatorname|mbox)[a-z]* ?\{([^{}]*+)\}", r" \1 "),
        (r"(?<=\d)\\?\$(?=\d)", " "),
        (r"\\?\$", ""),
        (r"\\%", "%"),
        (r" ?\^ ?\{? ?(?:\\circ|°) ?\}?|\\degree(?![a-zA-Z])", "°"),
        (rf"\\(?:sqrt|[dt]?binom) ?(?:\[[^\[\]]*+\])?(?: ?{ARGUMENT}){{0,2}}", ROOT),
        (r"\bsqrt ?\([^()]*+\)|[√∛] ?[\d.]*+", ROOT),
        (r"\\(?:pi|infty|pm|mp)(?![a-zA-Z])|[π∞±]", SYMBOL),
        (r"\\(?:times|cdot)(?![a-zA-Z])|[×·]", "*"),
        (r"\\[dct]?frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?!frac(?![a-zA-Z]))(?:[a-zA-Z]+|[^a-zA-Z])", " "),  # other commands say nothing of a number
        (r"\^ ?\{ ?([-+]?\w+) ?\}", r"^\1"),
        (r"(?<=[\d)])\*\*(?=[\d(-])| ?\^ ?", "^"),
        (r"[^\S\n]+", " "),
        (r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,])", ROOT),  # 10 000 may be one number or two
    )
]
RUN = r"\.?\d(?:[.,]*+\d)*+"
ENGLISH = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+")
POWER = r"(?:[eE](?P<{}>[-+]?\d{{1,3}})(?!\d))?"
NUMBER = re.compile(
    rf"(?P<sign>[-+] ?)?(?:{ROOT}"
    rf"|(?:(?P<whole>\d++) ?)?\\frac ?(?P<top>{ARGUMENT}) ?(?P<bottom>{ARGUMENT})"
    rf"|(?P<mixed>\d++) (?P<part>\d++)/(?P<parts>\d++)"
    rf"|(?P<run>{RUN}){POWER.format('e')}(?: ?/ ?(?P<below>-?{RUN}){POWER.format('below_e')})?"
    rf"(?: ?[*x] ?10\^(?P<ten>[-+]?\d{{1,3}})(?!\d))?)"
)
SIGNED = re.compile(rf"\{{? ?([-+]?) ?({RUN}) ?\}}?")
GOES_ON = re.compile(  # what makes the number before it a part of an expression
    rf"\^|[_.:]\d| ?\*? ?[{ROOT}{SYMBOL}]|/ ?(?:[\d(.\\{ROOT}{SYMBOL}]|[a-zA-Z](?![a-zA-Z]))"
)
VARIABLE = re.compile(r"([a-zA-Z\u0370-\u03ff])(?![a-zA-Z\u0370-\u03ff])")
SAID = re.compile(r"####|\b[Aa]nswer(?: is|:)")  # what an answer that is a whole solution puts before its result
SEVERAL = "has several numbers, and not one after ####, after its one = or in \\boxed{}"
BOXED = "\\boxed{"


def of_response(text: str) -> Fraction | None:
    """The last number of a response or, where it has a \\boxed{}, the one number of the last; None if there is none."""
    if (box := _last_box(text)) is not None:
        return _only(box)[0]
    return next(_last_numbers(text), None)


def of_answer(text: str) -> tuple[Fraction | None, str]:
    """(the one number of a task's answer, ""), or (None, why it has none).

    It is looked for in the last \\boxed{}, or else after the last `####`, `answer is` or `answer:`, if there is any.
    """
    box = _last_box(text)
    return _only(SAID.split(text)[-1] if box is None else box)


def _last_box(text: str) -> str | None:
    """What the last \\boxed{} holds; None where there is none that ends."""
    start = text.rfind(BOXED)
    depth = 0
    for brace in re.finditer(r"[{}]", text[start:] if start >= 0 else ""):
        depth += 1 if brace.group() == "{" else -1
        if not depth:
            return text[start + len(BOXED) : start + brace.start()]
    return None


def _only(text: str) -> tuple[Fraction | None, str]:
    """(the one number of a text, or the one after its one `=`, ""), or (None, why there is none)."""
    numbers = [*islice(_last_numbers(text), 2)]
    if len(numbers) > 1 and text.count("=") == 1:
        numbers = [*islice(_last_numbers(text.partition("=")[2]), 2)]
    if not numbers:
        return None, "has no number"
    if None in numbers:
        return None, "is no plain number, such as -1,000.5, 3/4, \\frac{3}{4} or 1e-3"
    return (numbers[0], "") if len(numbers) == 1 else (None, SEVERAL)


def _last_numbers(text: str) -> Iterator[Fraction | None]:
    """The value of each number of a text, the last one first; None for one that has no value."""
    for pattern, by in TIDY:
        text = pattern.sub(by, text)
    for match in reversed([*NUMBER.finditer(text)]):
        before = text[max(0, match.start() - 2) : match.start()]
        if not match["sign"] and match.group()[0] != "." and re.search(r"[a-zA-Z]$|\w_$|[})]_$", before):
            continue  # part of a name, such as x_1, H2O and cm2
        if re.search(r"[a-zA-Z]\^$", before):
            continue  # the power of a variable, or of a unit
        is_part = re.search(rf"[^a-zA-Z]\^$|^\^$|[\w)}}{ROOT}{SYMBOL}]/$|[{ROOT}{SYMBOL}] ?$|\d:$", before)
        value = None if is_part or _goes_on(text, match.end()) else _value(match, before)
        yield -value if value is not None and _is_minus(match["sign"] or "", before) else value


def _goes_on(text: str, end: int) -> bool:
    variable = VARIABLE.match(text, end)
    is_fraction = unicodedata.category(text[end : end + 1] or " ") == "No"  # a half or a square as one character
    return bool(is_fraction or GOES_ON.match(text, end) or (variable and variable[1] not in UNITS))


def _is_minus(sign: str, before: str) -> bool:
    """Whether a sign is one of the number: nothing stands before it from which it could subtract, as in `5-3`."""
    if not sign.startswith("-"):
        return False
    is_apart, last = sign.endswith(" "), before.rstrip(" ")[-1:]
    if before[-1:] == " " and last.isalpha():
        return not is_apart
    if last in ("", "\n"):  # with a space it is the mark of an item of a list, except at the beginning
        return not is_apart or not before
    return not (last.isalnum() or last in "_)]}.%°")


def _value(match: re.Match[str], before: str) -> Fraction | None:
    """The number without its sign; None where it has no value."""
    if match["top"]:
        part = _ratio(_signed(match["top"]), _signed(match["bottom"]))
        if not match["whole"] or part is None:
            return part
        return _plain(match["whole"], None, part) if 0 < part < 1 else None
    if match["mixed"]:
        part = _ratio(_plain(match["part"]), _plain(match["parts"]))
        return _plain(match["mixed"], None, part) if part is not None and 0 < part < 1 else None
    if not match["run"]:
        return None
    run = match["run"]
    if run.startswith(".") and re.search(r"[\w.)]$", before):
        if before[-1].isdigit():
            return None
        run = run[1:]  # the point ends a sentence
    value = _plain(run, match["e"])
    if match["below"]:
        below = _plain(match["below"].lstrip("-"), match["below_e"])
        value = _ratio(value, -below if below is not None and match["below"].startswith("-") else below)
    return value if value is None or not match["ten"] else value * Fraction(10) ** int(match["ten"])


def _plain(run: str, power: str | None = None, more: Fraction | None = None) -> Fraction | None:
    """The value of digits with commas and a point as in English, times ten to a power, and more."""
    if len(run) > LONGEST or not ENGLISH.fullmatch(run):
        return None
    return Fraction(run.replace(",", "")) * Fraction(10) ** int(power or 0) + (more or 0)


def _signed(argument: str) -> Fraction | None:
    signed = SIGNED.fullmatch(argument)
    value = _plain(signed[2]) if signed else None
    return -value if value is not None and signed and signed[1] == "-" else value


def _ratio(top: Fraction | None, bottom: Fraction | None) -> Fraction | None:
    return top / bottom if top is not None and bottom else None

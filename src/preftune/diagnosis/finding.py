"""A named failure of preference tuning, and how its numbers are written."""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

Severity = Literal["serious", "warn", "info"]
ORDER: tuple[Severity, ...] = ("serious", "warn", "info")

ALPHA = 0.05  # how often all checks together may take noise for a finding
# Fewer rows than this, or fewer steps where nothing is held out, are a hint but no ground for alarm.
SURE = 30
ROUNDING = 1e-6  # nats


class Finding(Struct, frozen=True, kw_only=True):
    """One finding. code: stable, for scripts; evidence: a sentence with the numbers; the rest: plain words.

    effects: sentences on other findings that follow from this one; p: of the test that it rests on, if it does.
    """

    code: str
    severity: Severity = "warn"
    title: str
    evidence: str
    meaning: str
    remedy: str
    effects: tuple[str, ...] = ()
    p: float | None = None


def share(value: float | None, places: int = 1) -> str:
    """A share as a percentage, with a space that does not break: `78.4 %`; an en dash where there is none."""
    return "–" if value is None else f"{number(100 * value, places)}\u00a0%"


def but_rounding(value: float | None, unit: str) -> float | None:
    """The value; 0 where it is of nats, and so small that it is nothing but rounding."""
    return 0.0 if value is not None and "nats" in unit and abs(value) < ROUNDING else value


def number(value: float | None, places: int | None = None, *, sign: bool = False) -> str:
    """Three significant figures (or fixed decimal places), thousands separated, with a true minus sign."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if value != value else ("∞" if value > 0 else "−∞")
    size = abs(value)
    if places is not None:
        text = f"{size:,.{places}f}"
    elif size >= 99.95 or value == int(value):
        text = f"{size:,.0f}"
    elif size >= 0.001:
        text = f"{size:.{1 if size >= 9.995 else 2 if size >= 0.9995 else 3}f}"
    else:
        text = f"{size:.1e}".replace("e-0", "e-")
    negative = value < 0 and any(digit in text for digit in "123456789")
    return ("−" if negative else "+" if sign and value > 0 else "") + text.replace("e-", "e−")

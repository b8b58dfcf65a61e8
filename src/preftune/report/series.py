"""Charts as plain values, and the lines that a record's numbers make."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from preftune.record.parse import Numbers
from preftune.record.reader import Record
from preftune.record.statistics import mean

POINTS = 400  # points of a line; a chart has no pixels for more
SMOOTH_FROM = 24  # shorter lines are shown as they are
WINDOW = 0.06  # share of the steps in the moving mean
RUN_COLORS = 8


class Series(Struct, frozen=True, omit_defaults=True):
    """One line or set of points. style: line, faint, dots (points joined), points or steps."""

    name: str
    color: str
    x: list[float]
    y: list[float | None]
    style: str = "line"
    dash: bool = False
    legend: bool = True
    text: list[str] | None = None
    label: str = ""  # in the legend, where it is not the name


class Chart(Struct, frozen=True, omit_defaults=True):
    """look: one sentence on what to look for. zero, half: draw a guide at 0 or at one half.

    stack: lines add up; floor: the axis begins at 0; doubling: every doubling of x has the same width.
    """

    id: str
    title: str
    y: str
    look: str
    x: str = ""
    series: list[Series] = []
    percent: bool = False
    zero: bool = False
    half: bool = False
    stack: bool = False
    floor: bool = False
    doubling: bool = False


Runs = Sequence[tuple[str, Record]]  # each with the name that tells it from the others


def trained(runs: Runs, chart: Chart, *, smooth: bool = True) -> Chart:
    """The chart of the number that its id names: in training and, where it is measured there, held out."""
    series: list[Series] = []
    for index, (name, record) in enumerate(runs):
        if len(runs) == 1:
            series += line_of(record.steps, chart.id, "Training", "train", smooth=smooth, faint=True)
            series += line_of(record.evaluations, chart.id, "Held out", "held", style="dots")
            continue
        held_out = line_of(record.evaluations, chart.id, name, color_of(index), style="dots")
        training = line_of(record.steps, chart.id, name, color_of(index), smooth=smooth)
        series += [replace(line, style="faint", legend=False) for line in training] if held_out else training
        series += held_out
    dots = " Points are held out, thin lines are training." if any(line.style == "dots" for line in series) else ""
    return replace(chart, x="step", series=series, look=chart.look + (dots if len(runs) > 1 else ""))


def line_of(points: Sequence[Numbers], key: str, name: str, color: str, *, style: str = "line", smooth: bool = True,
          faint: bool = False, dash: bool = False) -> list[Series]:  # fmt: skip
    """The number as one series, or as a faint one under its moving mean; none where the number never exists."""
    pairs = [(point["step"] or 0.0, value) for point in points if (value := point.get(key)) is not None]
    if not pairs:
        return []
    x, y = _thinned(pairs)
    if not smooth or style != "line" or len(x) < SMOOTH_FROM:
        return [Series(name, color, x, y, style, dash)]
    under = [Series(name, color, x, y, "faint", dash, legend=False)] if faint else []
    return [*under, Series(name, color, x, _moving_mean(y), style, dash)]


def _moving_mean(y: Sequence[float | None]) -> list[float | None]:
    """Centered moving mean; at both ends over the part of the window that there is."""
    half = max(1, round(len(y) * WINDOW / 2))
    return [rounded(mean(y[max(0, i - half) : i + half + 1])) for i in range(len(y))]


def _thinned(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float | None]]:
    """x and y of at most about POINTS points: the means of neighbors."""
    every = math.ceil(len(pairs) / POINTS)
    blocks = [pairs[i : i + every] for i in range(0, len(pairs), every)]
    x = [pairs[min(i * every + every // 2, len(pairs) - 1)][0] for i in range(len(blocks))]
    return x, [rounded(mean(value for _, value in block)) for block in blocks]


def rounded(value: float | None) -> float | None:
    """Five figures, more than a chart can show; what is no number is a gap."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def color_of(index: int) -> str:
    return f"run-{index % RUN_COLORS + 1}"

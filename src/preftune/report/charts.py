"""Charts as plain values: what to draw, with which colour role, and what to look for. The page's script draws them.

Colours are roles (`chosen`, `held`, `run-1`), not values: the page's style sheet gives each role its colour in the
light and in the dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from preftune.diagnosis.finding import number
from preftune.record.parse import Numbers
from preftune.record.reader import Record
from preftune.report.compare import of_one_kind
from preftune.report.words import rows, sides, visible

POINTS = 400  # points a line keeps: more than a chart has pixels to show
SMOOTH_FROM = 24  # shorter lines are shown as they are
WINDOW = 0.06  # share of the steps in the moving mean
RUN_COLOURS = 8
RIGHT = {"ratings": "good above bad"}  # what an accuracy counts; else pairs
SCATTER = 4000  # rows a scatter shows; more only make it darker


class Series(Struct, frozen=True, omit_defaults=True):
    """One line or set of points. style: line, faint, dots (points joined), points or steps."""

    name: str
    colour: str
    x: list[float]
    y: list[float | None]
    style: str = "line"
    dash: bool = False
    legend: bool = True
    text: list[str] | None = None
    label: str = ""  # in the legend, where not the name


class Chart(Struct, frozen=True, omit_defaults=True):
    """look: one sentence on what to look for. zero, half: draw a guide at 0 or at one half.

    stack: lines add up; floor: the axis begins at 0; doubling: every doubling of x has the same width.
    """

    id: str
    title: str
    look: str
    x: str
    y: str
    series: list[Series]
    percent: bool = False
    zero: bool = False
    half: bool = False
    stack: bool = False
    floor: bool = False
    doubling: bool = False


Value = Callable[[Numbers], float | None]
Runs = Sequence[tuple[str, Record]]  # each with the name that tells it from the others


def charts(runs: Runs) -> list[tuple[str, list[Chart]]]:
    """The charts of one run, or of several laid over each other, under the headings they belong to."""
    kind = of_kind(runs)
    right = RIGHT.get(kind, "pairs ranked right")
    better, worse = sides(kind)
    learned = [_trained(runs, "loss", "Loss", "as the objective",
                        "Held out should fall with training and stay down; a rise at the end is overfitting."),
               _trained(runs, "accuracy", "Accuracy", right,
                        "Above the dashed half is learning. A widening gap between training and held out is memory.",
                        percent=True, half=True),
               _trained(runs, "margin", "Margin", "nats",
                        f"The lead of {better} over {worse}. Should rise, then level off.",
                        zero=True)]  # fmt: skip
    moved = [_sides(runs, "reward", "Rewards", "beta × nats",
                    f"The two should part with {better} above {worse}; best without a fall of {better} below zero."),
             _sides(runs, "logp_change", "Change of log-probability", "nats since the start",
                    "Should rise, also held out: these are the responses to imitate." if kind == "demos" else
                    f"Where {better} fell too, the margin is bought by making both less probable: displacement."),
             _sides(runs, "incentive", "Incentives of the objective", "d loss / d logp",
                    "Negative pushes up, positive pushes down. Near zero the objective has nothing more to ask for."),
             _scatter(runs)]  # fmt: skip
    optimizer = [
        _trained(
            runs,
            "grad_norm",
            "Gradient norm",
            "before clipping",
            "Spikes are single hard steps; a steady climb means that the rate is too high.",
            floor=True,
        ),
        _trained(runs, "lr", "Learning rate", "", "The schedule as it was run.", raw=True, floor=True),
    ]
    cost = [_tokens(runs[0][1]) if len(runs) == 1 else None, _speed(runs)]
    sections = [("Did it learn?", learned), ("Where did the probability go?", moved),
                ("The optimizer", optimizer), ("Cost", cost)]  # fmt: skip
    if not of_one_kind([record for _, record in runs]):
        learned = [_trained(runs, "accuracy_of_change", "Accuracy since start", right,
                            f"How often {better} gained more than {worse}: means the same in all runs, where losses "
                            "and margins do not.", percent=True, half=True)]  # fmt: skip
        sections[0] = (sections[0][0], learned)
    kept = [(title, [chart for chart in group if chart and chart.series]) for title, group in sections]
    return [(title, group) for title, group in kept if group]


def of_kind(runs: Runs) -> str:
    """What the rows of all runs are, in the plural; `rows` where they are not the same."""
    kinds = {rows(record) for _, record in runs}
    return kinds.pop() if len(kinds) == 1 else "rows"


def lengths(record: Record) -> Chart | None:
    """Histogram of the lengths that data.json counts."""
    series = []
    better, worse = sides(rows(record))
    for part, called, colour in (("prompt", "prompt", "train"), ("chosen", better, "chosen"),
                                 ("rejected", worse, "rejected")):  # fmt: skip
        spread = record.data.lengths.get(part)
        if spread and spread.bins:
            # The bins double in width, so the first one begins at half of its end; from zero and back to zero.
            x = [spread.bins[0].to / 2, *(b.to for b in spread.bins), spread.bins[-1].to]
            y = [0.0, *(float(b.count) for b in spread.bins), 0.0]
            series.append(Series(called.capitalize(), colour, x, [*y], "steps"))
    look = f"{better.capitalize()} and {worse} should lie on each other; apart, length predicts the label."
    if not record.data.lengths.get("rejected"):
        look = "How long prompts and responses are. Long ones decide the memory that a step takes."
    if not series:
        return None
    return Chart("lengths", "Lengths", look, "tokens", "responses", series, floor=True, doubling=True)


def _trained(runs: Runs, key: str, title: str, unit: str, look: str, *, raw: bool = False, percent: bool = False,
             half: bool = False, zero: bool = False, floor: bool = False) -> Chart:  # fmt: skip
    """A number over the steps: in training and, where it is measured there, held out."""
    series: list[Series] = []
    for index, (called, record) in enumerate(runs):
        if len(runs) == 1:
            series += _line(record.steps, _of(key), "Training", "train", raw=raw, faint=True)
            series += _line(record.evaluations, _of(key), "Held out", "held", style="dots")
            continue
        held_out = _line(record.evaluations, _of(key), called, _colour(index), style="dots")
        training = _line(record.steps, _of(key), called, _colour(index), raw=raw)
        series += [replace(one, style="faint", legend=False) for one in training] if held_out else training
        series += held_out
    if len(runs) > 1 and any(one.style == "dots" for one in series):
        look += " Points are held out, thin lines are training."
    return Chart(key, title, look, "step", unit, series, percent=percent, half=half, zero=zero, floor=floor)


def _sides(runs: Runs, key: str, title: str, unit: str, look: str) -> Chart:
    """A number of the chosen and of the rejected response; of several runs rejected is dashed."""
    series: list[Series] = []
    if len(runs) == 1:
        record = runs[0][1]
        for side, name in zip(("chosen", "rejected"), sides(rows(record)), strict=True):
            series += _line(record.steps, _of(f"{side}_{key}"), name.capitalize(), side)
            held_out = f"{name.capitalize()}, held out"
            series += _line(record.evaluations, _of(f"{side}_{key}"), held_out, side, style="dots", dash=True)
        return Chart(key, title, look, "step", unit, series, zero=True)
    for index, (called, record) in enumerate(runs):
        for side, name in zip(("chosen", "rejected"), sides(of_kind(runs)), strict=True):
            dash = side == "rejected"
            line = _line(record.steps, _of(f"{side}_{key}"), f"{called}, {name}", _colour(index), dash=dash)
            series += [replace(one, legend=not dash, label=called) for one in line]
    if any(one.dash for one in series):
        look = f"{look} Solid is {sides(of_kind(runs))[0]}, dotted is {sides(of_kind(runs))[1]}."
    return Chart(key, title, look, "step", unit, series, zero=True)


def _of(key: str) -> Value:
    return lambda numbers: numbers.get(key)


def _scatter(runs: Runs) -> Chart:
    """Margin of every held-out row against how much longer its chosen response is."""
    series = []
    for index, (called, record) in enumerate(runs):
        x, y, text = [], [], []
        for row in record.rows[:SCATTER]:
            if row.margin is not None and row.chosen_tokens is not None and row.rejected_tokens is not None:
                x.append(row.chosen_tokens - row.rejected_tokens)
                y.append(_rounded(row.margin))
                text.append(visible(row.id))
        if x:
            colour = "held" if len(runs) == 1 else _colour(index)
            name = "Held-out row" if len(runs) == 1 else called
            series.append(Series(name, colour, x, y, "points", text=text))
    look = "A cloud that climbs to the right is length bias. Below the zero line the model prefers rejected."
    return Chart("rows", "Margin against length", look, "tokens by which chosen is longer", "margin, nats", series,
                 zero=True)  # fmt: skip


def _tokens(record: Record) -> Chart:
    computed = _line(record.steps, _of("tokens_computed"), "Computed", "held")
    shared = _line(record.steps, _of("tokens_shared"), "Saved by sharing", "muted")
    look = "The upper band is what computing every prompt with each response anew would have cost on top."
    return Chart("tokens", "Tokens of a step", look, "step", "tokens", computed + shared, stack=True, floor=True)


def _speed(runs: Runs) -> Chart:
    """Tokens computed a second."""
    series: list[Series] = []
    for index, (called, record) in enumerate(runs):
        alone = len(runs) == 1
        name, colour = ("Speed", "held") if alone else (called, _colour(index))
        series += _line(record.steps, _per_second, name, colour, faint=alone)
    look = "Level is good. Slow first steps are compilation or warm-up; dips are other work on the machine."
    return Chart("speed", "Speed", look, "step", "tokens computed / s", series, floor=True)


def _per_second(step: Numbers) -> float | None:
    tokens, seconds = step.get("tokens_computed"), step.get("seconds")
    return tokens / seconds if tokens is not None and seconds else None


def _line(points: Sequence[Numbers], value: Value, name: str, colour: str, *, style: str = "line", raw: bool = False,
          faint: bool = False, dash: bool = False, legend: bool = True) -> list[Series]:  # fmt: skip
    """The number as one series, or as a faint one under its moving mean; none where the number never exists."""
    pairs = [(p["step"] or 0.0, found) for p in points if (found := value(p)) is not None]
    if not pairs:
        return []
    x, y = _thinned([pair[0] for pair in pairs], [_rounded(pair[1]) for pair in pairs])
    if raw or style != "line" or len(x) < SMOOTH_FROM:
        return [Series(name, colour, x, y, style, dash, legend)]
    under = [Series(name, colour, x, y, "faint", dash, False)] if faint else []
    return [*under, Series(name, colour, x, _smooth(y), style, dash, legend)]


def _smooth(y: Sequence[float | None]) -> list[float | None]:
    """Centred moving mean; at both ends over the half of the window that there is."""
    half = max(1, round(len(y) * WINDOW / 2))
    result = []
    for i in range(len(y)):
        around = [v for v in y[max(0, i - half) : i + half + 1] if v is not None]
        result.append(_rounded(math.fsum(around) / len(around)) if around else None)
    return result


def _thinned(x: Sequence[float], y: Sequence[float | None]) -> tuple[list[float], list[float | None]]:
    """At most about POINTS points: the means of neighbors."""
    every = math.ceil(len(x) / POINTS)
    if every <= 1:
        return list(x), list(y)
    means: list[float | None] = []
    for i in range(0, len(y), every):
        block = [v for v in y[i : i + every] if v is not None]
        means.append(_rounded(math.fsum(block) / len(block)) if block else None)
    return [x[min(i + every // 2, len(x) - 1)] for i in range(0, len(x), every)], means


def _rounded(value: float | None) -> float | None:
    """Five figures, which no chart can show; what is no number is a gap."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def _colour(index: int) -> str:
    return f"run-{index % RUN_COLOURS + 1}"


def describe(chart: Chart) -> str:
    """The chart in a sentence, for those who do not see it."""
    parts = []
    for series in chart.series:
        values = [v for v in series.y if v is not None]
        if series.legend and values and series.style in ("line", "dots"):
            parts.append(f"{series.name} from {number(values[0])} to {number(values[-1])}")
    return f"{chart.title}: {'; '.join(parts)}." if parts else f"{chart.title}."

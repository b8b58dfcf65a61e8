"""Charts as plain values: what to draw, in which color role, and what to look for. The page's script draws them.

Colors are roles (`chosen`, `held`, `run-1`): the page's style sheet gives each role its color in the light and in the
dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from preftune.diagnosis.finding import number
from preftune.diagnosis.objective_facts import says_scores
from preftune.record.parse import Numbers
from preftune.record.reader import Record
from preftune.record.statistics import mean
from preftune.report.compare import comparable
from preftune.report.words import row_kind, sides, visible

POINTS = 400  # points of a line; a chart has no pixels for more
SMOOTH_FROM = 24  # shorter lines are shown as they are
WINDOW = 0.06  # share of the steps in the moving mean
RUN_COLORS = 8
SCATTER = 4000  # rows that a scatter shows; more only make it darker


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


def charts(runs: Runs) -> list[tuple[str, list[Chart]]]:
    """The charts of one run, or of several laid over each other, under the headings they belong to."""
    kind = _common_kind(runs)
    right = "good above bad" if kind == "ratings" else "pairs ranked right"
    better, worse = sides(kind)
    change = "Should rise, also held out: the model learns to write these responses." if kind == "demos" else \
        f"Where {better} fell too, the margin is bought by making both less probable: displacement."  # fmt: skip
    learned = [
        _trained(runs, Chart("loss", "Loss", "as the objective",
            "Held out should fall with training and stay down; a rise at the end is overfitting.")),
        _trained(runs, Chart("accuracy", "Accuracy", right, percent=True, half=True, look="Above the dashed half is "
            "learning. A widening gap between training and held out is memorization.")),
        _trained(runs, Chart("margin", "Margin", "nats", zero=True,
            look=f"The lead of {better} over {worse}. Should rise, then level off.")),
    ]  # fmt: skip
    if not comparable([record for _, record in runs]):
        learned = [_trained(runs, Chart("accuracy_of_change", "Accuracy since start", right, percent=True, half=True,
            look=f"How often {better} gained more than {worse}: the same measure in all runs, unlike losses and "
            "margins."))]  # fmt: skip
    scores = all(says_scores(record) for _, record in runs)
    moved = [
        _sides(runs, Chart("score", "Scores", "nats",
            f"{better.capitalize()} should part from {worse}; only the distance between the two means something.")),
        _sides(runs, Chart("reward", "Rewards", "beta × nats",
            f"The two should part with {better} above {worse}; best without a fall of {better} below zero.")),
        _sides(runs, Chart("logp_change", "Change of log-probability", "nats since the start", change)),
        _sides(runs, Chart("incentive", "Incentives of the objective", f"d loss / d {'score' if scores else 'logp'}",
            "Negative pushes up, positive pushes down. Near zero the objective asks for nothing more.")),
        _scatter(runs),
    ]  # fmt: skip
    drawn_numbers = [
        _over_kl(runs),
        _phases(runs, Chart("tokens", "Length of the draws", "tokens", "A steady climb that the task does not ask for "
            "is a reward that pays for length.", floor=True)),
        _phases(runs, Chart("ended", "Ended", "share of the draws", "Below nine in ten, raise rollout.max_tokens or "
            "set reward.missing_end.", percent=True)),
        _phases(runs, Chart("distinct", "Distinct", "share of the draws", "Near zero all responses to a prompt are the "
            "same and teach nothing.", percent=True)),
    ]  # fmt: skip
    optimizer = [
        _trained(runs, Chart("grad_norm", "Gradient norm", "before clipping", floor=True,
            look="Spikes are single hard steps; a steady climb means that the rate is too high.")),
        _trained(runs, Chart("lr", "Learning rate", "", "The schedule as it was run.", floor=True), smooth=False),
    ]  # fmt: skip
    cost = [_speed(runs)] if len(runs) > 1 else [_tokens(runs[0][1]), _speed(runs)]
    where = "Where did the scores go?" if scores else "Where did the probability go?"
    sections = (("What did it draw?", drawn_numbers), ("Did it learn?", learned), (where, moved),
                ("The optimizer", optimizer), ("Cost", cost))  # fmt: skip
    drawn = [(title, [chart for chart in group if chart.series]) for title, group in sections]
    return [(title, group) for title, group in drawn if group]


def lengths(record: Record) -> Chart | None:
    """Histogram of the lengths that data.json counts."""
    series = []
    better, worse = sides(row_kind(record))
    for part, name, color in (("prompt", "prompt", "train"), ("chosen", better, "chosen"),
                              ("rejected", worse, "rejected")):  # fmt: skip
        spread = record.data.lengths.get(part)
        if spread and spread.bins:
            # The bins double in width, so the first one begins at half of its end; from zero and back to zero.
            x = [spread.bins[0].to / 2, *(b.to for b in spread.bins), spread.bins[-1].to]
            y = [0.0, *(float(b.count) for b in spread.bins), 0.0]
            series.append(Series(name.capitalize(), color, x, [*y], "steps"))
    look = f"{better.capitalize()} and {worse} should lie on each other; apart, length predicts the label."
    if not record.data.lengths.get("rejected"):
        look = "How long prompts and responses are. Long ones decide how much memory a step takes."
    return (
        Chart("lengths", "Lengths", "responses", look, "tokens", series, floor=True, doubling=True) if series else None
    )


def describe(chart: Chart) -> str:
    """The chart in a sentence, for those who do not see it."""
    courses = []
    for series in chart.series:
        values = [v for v in series.y if v is not None]
        if series.legend and values and series.style in ("line", "dots"):
            courses.append(f"{series.name} from {number(values[0])} to {number(values[-1])}")
    return f"{chart.title}: {'; '.join(courses)}." if courses else f"{chart.title}."


def _common_kind(runs: Runs) -> str:
    """What the rows of all runs are, in the plural; `rows` where they differ."""
    kinds = {row_kind(record) for _, record in runs}
    return kinds.pop() if len(kinds) == 1 else "rows"


def _trained(runs: Runs, chart: Chart, *, smooth: bool = True) -> Chart:
    """The chart of the number that its id names: in training and, where it is measured there, held out."""
    series: list[Series] = []
    for index, (name, record) in enumerate(runs):
        if len(runs) == 1:
            series += _line(record.steps, chart.id, "Training", "train", smooth=smooth, faint=True)
            series += _line(record.evaluations, chart.id, "Held out", "held", style="dots")
            continue
        held_out = _line(record.evaluations, chart.id, name, _color(index), style="dots")
        training = _line(record.steps, chart.id, name, _color(index), smooth=smooth)
        series += [replace(line, style="faint", legend=False) for line in training] if held_out else training
        series += held_out
    dots = " Points are held out, thin lines are training." if any(line.style == "dots" for line in series) else ""
    return replace(chart, x="step", series=series, look=chart.look + (dots if len(runs) > 1 else ""))


def _over_kl(runs: Runs) -> Chart:
    """Score over distance from the reference: of each phase, and held out under the best that any policy could do."""
    series: list[Series] = []
    for index, (name, record) in enumerate(runs):
        one_run = len(runs) == 1
        points = [("Phases", "train", record.phases, "score"), ("Held out", "held", record.evaluations, "score"),
                  ("Ceiling", "chosen", record.evaluations, "ceiling")]  # fmt: skip
        for label, color, lines, key in points:
            pairs = sorted(
                (x, y) for line in lines if (x := line.get("kl")) is not None and (y := line.get(key)) is not None
            )
            if pairs:
                x, y = (list(values) for values in zip(*pairs, strict=True))
                style = "points" if key == "score" and color == "train" else "dots"
                text = label if one_run else f"{name}, {label.lower()}"
                series.append(Series(text, color if one_run else _color(index), x, y, style, dash=key == "ceiling"))
    look = (
        "The held-out course should climb along the ceiling, which is the best that any policy can do at that distance."
    )
    return Chart("score", "Score over KL", "score", look, "KL from the reference, nats", series)


def _phases(runs: Runs, chart: Chart) -> Chart:
    """A number of the phases."""
    series: list[Series] = []
    for index, (name, record) in enumerate(runs):
        label, color = ("Drawn", "held") if len(runs) == 1 else (name, _color(index))
        series += _line(
            record.phases, chart.id, label, color, style="dots" if len(record.phases) < SMOOTH_FROM else "line"
        )
    return replace(chart, x="step", series=series, id=f"phase_{chart.id}")


def _sides(runs: Runs, chart: Chart) -> Chart:
    """A number of the chosen and of the rejected response; of several runs rejected is dashed."""
    series: list[Series] = []
    names = sides(_common_kind(runs))
    for index, (run, record) in enumerate(runs):
        for side, name in zip(("chosen", "rejected"), names, strict=True):
            key, dash = f"{side}_{chart.id}", side == "rejected"
            if len(runs) == 1:
                held_out = f"{name.capitalize()}, held out"
                series += _line(record.steps, key, name.capitalize(), side)
                series += _line(record.evaluations, key, held_out, side, style="dots", dash=True)
            else:
                lines = _line(record.steps, key, f"{run}, {name}", _color(index), dash=dash)
                series += [replace(line, legend=not dash, label=run) for line in lines]
    both = len(runs) > 1 and any(line.dash for line in series)
    look = f"{chart.look} Solid is {names[0]}, dotted is {names[1]}." if both else chart.look
    return replace(chart, x="step", series=series, look=look, zero=True)


def _scatter(runs: Runs) -> Chart:
    """Margin of every held-out row against how much longer its chosen response is."""
    series = []
    for index, (run, record) in enumerate(runs):
        points = [
            (row.chosen_tokens - row.rejected_tokens, _rounded(row.margin), visible(row.id))
            for row in record.rows[:SCATTER]
            if row.margin is not None and row.chosen_tokens is not None and row.rejected_tokens is not None
        ]
        if points:
            x, y, text = (list(values) for values in zip(*points, strict=True))
            name, color = ("Held-out row", "held") if len(runs) == 1 else (run, _color(index))
            series.append(Series(name, color, x, y, "points", text=text))
    look = "A cloud that climbs to the right is length bias. Below the zero line the model prefers rejected."
    x_title = "tokens by which chosen is longer"
    return Chart("rows", "Margin against length", "margin, nats", look, x_title, series, zero=True)


def _tokens(record: Record) -> Chart:
    computed = _line(record.steps, "tokens_computed", "Computed", "held")
    shared = _line(record.steps, "tokens_shared", "Saved by sharing", "muted")
    look = "The upper band is what it would cost on top to compute every prompt again with each response."
    return Chart("tokens", "Tokens of a step", "tokens", look, "step", computed + shared, stack=True, floor=True)


def _speed(runs: Runs) -> Chart:
    """Tokens computed a second."""
    series: list[Series] = []
    for index, (run, record) in enumerate(runs):
        points: list[Numbers] = [
            {"step": step["step"], "speed": tokens / seconds}
            for step in record.steps
            if (tokens := step.get("tokens_computed")) is not None and (seconds := step.get("seconds"))
        ]
        name, color = ("Speed", "held") if len(runs) == 1 else (run, _color(index))
        series += _line(points, "speed", name, color, faint=len(runs) == 1)
    look = "Level is good. Slow first steps are compilation or warm-up; dips are other work on the machine."
    return Chart("speed", "Speed", "tokens computed / s", look, "step", series, floor=True)


def _line(points: Sequence[Numbers], key: str, name: str, color: str, *, style: str = "line", smooth: bool = True,
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
    return [_rounded(mean(y[max(0, i - half) : i + half + 1])) for i in range(len(y))]


def _thinned(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float | None]]:
    """x and y of at most about POINTS points: the means of neighbors."""
    every = math.ceil(len(pairs) / POINTS)
    blocks = [pairs[i : i + every] for i in range(0, len(pairs), every)]
    x = [pairs[min(i * every + every // 2, len(pairs) - 1)][0] for i in range(len(blocks))]
    return x, [_rounded(mean(value for _, value in block)) for block in blocks]


def _rounded(value: float | None) -> float | None:
    """Five figures, more than a chart can show; what is no number is a gap."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def _color(index: int) -> str:
    return f"run-{index % RUN_COLORS + 1}"

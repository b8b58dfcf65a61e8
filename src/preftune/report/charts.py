"""Charts as plain values: what to draw, in which color role, and what to look for. The page's script draws them.

Colors are roles (`chosen`, `held`, `run-1`): the page's style sheet gives each role its color in the light and in the
dark theme.
"""

from __future__ import annotations

from msgspec.structs import replace

from preftune.diagnosis.finding import number
from preftune.diagnosis.objective_facts import is_surrogate, says_scores
from preftune.record.parse import Numbers
from preftune.record.reader import Record
from preftune.report.compare import comparable
from preftune.report.series import SMOOTH_FROM, Chart, Runs, Series, color_of, line_of, rounded, trained
from preftune.report.words import row_kind, sides, visible

SCATTER = 4000  # rows that a scatter shows; more only make it darker


def charts(runs: Runs) -> list[tuple[str, list[Chart]]]:
    """The charts of one run, or of several laid over each other, under the headings they belong to."""
    kind = _common_kind(runs)
    right = "good above bad" if kind == "ratings" else "pairs ranked right"
    better, worse = sides(kind)
    change = "Should rise, also held out: the model learns to write these responses." if kind == "demos" else \
        f"Where {better} fell too, the margin is bought by making both less probable: displacement."  # fmt: skip
    surrogate = any(is_surrogate(record) for _, record in runs)
    loss = trained(runs, Chart("loss", "Loss", "as the objective", "A surrogate: its gradient is what teaches, and its "
        "value need not fall. What was learned shows in the score." if surrogate else
        "Held out should fall with training and stay down; a rise at the end is overfitting."))  # fmt: skip
    learned = [
        *([] if surrogate else [loss]),
        trained(runs, Chart("perplexity", "Perplexity", "of held-out responses",
            "Should fall and stay down: between how many tokens, as it were, the model has to choose each time.")),
        trained(runs, Chart("accuracy", "Accuracy", right, percent=True, half=True, look="Above the dashed half is "
            "learning. A widening gap between training and held out is memorization.")),
        trained(runs, Chart("margin", "Margin", "nats", zero=True,
            look=f"The lead of {better} over {worse}. Should rise, then level off.")),
    ]  # fmt: skip
    if not comparable([record for _, record in runs]):
        learned = [trained(runs, Chart("accuracy_of_change", "Accuracy since start", right, percent=True, half=True,
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
    optimizer = [
        *([loss] if surrogate else []),
        trained(runs, Chart("grad_norm", "Gradient norm", "before clipping", floor=True,
            look="Spikes are single hard steps; a steady climb means that the rate is too high.")),
        trained(runs, Chart("lr", "Learning rate", "", "The schedule as it was run.", floor=True), smooth=False),
    ]  # fmt: skip
    cost = [_speed(runs)] if len(runs) > 1 else [_tokens(runs[0][1]), _speed(runs)]
    where = "Where did the scores go?" if scores else "Where did the probability go?"
    sections = (("What did it draw?", _drawn(runs)), ("Did it learn?", learned), (where, moved),
                ("The optimizer", optimizer), ("Cost", cost))  # fmt: skip
    drawn = [(title, [chart for chart in group if chart.series]) for title, group in sections]
    return [(title, group) for title, group in drawn if group]


def extra(record: Record) -> list[Chart]:
    """Those that the run's author has added."""
    charts = []
    for place, own in enumerate(record.extras.charts):
        series = []
        for index, curve in enumerate(own.curves):
            style, color = ("line", "muted") if len(curve.x) > 1 else ("points", color_of(index))
            name, x, y = visible(curve.name), [*curve.x], [rounded(value) for value in curve.y]
            series.append(Series(name, color, x, y, style, dash=style == "line", text=[name] * len(x)))
        title, y, look, x = (visible(part) for part in (own.title, own.y, own.note, own.x))
        charts.append(Chart(f"extra_{place}", title, y, look, x, series))
    return charts


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


def _sides(runs: Runs, chart: Chart) -> Chart:
    """A number of the chosen and of the rejected response; of several runs rejected is dashed."""
    series: list[Series] = []
    names = sides(_common_kind(runs))
    for index, (run, record) in enumerate(runs):
        for side, name in zip(("chosen", "rejected"), names, strict=True):
            key, dash = f"{side}_{chart.id}", side == "rejected"
            if len(runs) == 1:
                held_out = f"{name.capitalize()}, held out"
                series += line_of(record.steps, key, name.capitalize(), side)
                series += line_of(record.evaluations, key, held_out, side, style="dots", dash=True)
            else:
                lines = line_of(record.steps, key, f"{run}, {name}", color_of(index), dash=dash)
                series += [replace(line, legend=not dash, label=run) for line in lines]
    both = len(runs) > 1 and any(line.dash for line in series)
    look = f"{chart.look} Solid is {names[0]}, dotted is {names[1]}." if both else chart.look
    return replace(chart, x="step", series=series, look=look, zero=True)


def _scatter(runs: Runs) -> Chart:
    """Margin of every held-out row against how much longer its chosen response is."""
    series = []
    for index, (run, record) in enumerate(runs):
        points = [
            (row.surplus, rounded(row.margin), visible(row.id))
            for row in record.rows[:SCATTER]
            if row.margin is not None and row.surplus is not None
        ]
        if points:
            x, y, text = (list(values) for values in zip(*points, strict=True))
            name, color = ("Held-out row", "held") if len(runs) == 1 else (run, color_of(index))
            series.append(Series(name, color, x, y, "points", text=text))
    look = "A cloud that climbs to the right is length bias. Below the zero line the model prefers rejected."
    x_title = "tokens by which chosen is longer"
    return Chart("rows", "Margin against length", "margin, nats", look, x_title, series, zero=True)


def _tokens(record: Record) -> Chart:
    computed = line_of(record.steps, "tokens_computed", "Computed", "held")
    shared = line_of(record.steps, "tokens_shared", "Saved by sharing", "muted")
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
        name, color = ("Speed", "held") if len(runs) == 1 else (run, color_of(index))
        series += line_of(points, "speed", name, color, faint=len(runs) == 1)
    look = "Level is good. Slow first steps are compilation or warm-up; dips are other work on the machine."
    return Chart("speed", "Speed", "tokens computed / s", look, "step", series, floor=True)


def _drawn(runs: Runs) -> list[Chart]:
    """Those of runs that draw what they learn from; of others they have no series."""
    return [
        _over_kl(runs) if any(phase.get("kl") is not None for _, record in runs for phase in record.phases) else
        _scores(runs),
        *_rewards(runs),
        _phases(runs, Chart("tokens", "Length of the draws", "tokens", "A steady climb that the task does not ask for "
            "is a reward that pays for length.", floor=True)),
        _phases(runs, Chart("ended", "Ended", "share of the draws", "Below nine in ten, raise rollout.max_tokens or "
            "set reward.missing_end.", percent=True)),
        _phases(runs, Chart("distinct", "Distinct", "share of the draws", "Near zero all responses to a prompt are the "
            "same and teach nothing.", percent=True)),
    ]  # fmt: skip


def _scores(runs: Runs) -> Chart:
    """Score of each phase and held out, where no reference gives a KL to put it over."""
    chart = _phases(runs, Chart("score", "Score", "score", "Should rise, also held out."))
    held_out = [
        line
        for index, (name, record) in enumerate(runs)
        for line in line_of(record.evaluations, "score", "Held out" if len(runs) == 1 else f"{name}, held out",
                            "chosen" if len(runs) == 1 else color_of(index), style="dots", dash=True)
    ]  # fmt: skip
    return replace(chart, series=[*chart.series, *held_out])


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
                series.append(Series(text, color if one_run else color_of(index), x, y, style, dash=key == "ceiling"))
    look = (
        "The held-out course should climb along the ceiling, which is the best that any policy can do at that distance."
    )
    return Chart("score", "Score over KL", "score", look, "KL from the reference, nats", series)


def _rewards(runs: Runs) -> list[Chart]:
    """Of each reward, where a run has several, its mean by itself."""
    names = dict.fromkeys(key for _, record in runs for phase in record.phases for key in phase
                          if key.startswith("reward "))  # fmt: skip
    look = "One that rises while another falls is what the sum pays for."
    charts = [_phases(runs, Chart(name, visible(f"R{name[1:]}"), "score", look)) for name in names]
    numbered = [replace(chart, id=f"phase_reward_{number}") for number, chart in enumerate(charts)]
    return numbered if len(numbered) > 1 else []


def _phases(runs: Runs, chart: Chart) -> Chart:
    """A number of the phases."""
    series: list[Series] = []
    for index, (name, record) in enumerate(runs):
        label, color = ("Drawn", "held") if len(runs) == 1 else (name, color_of(index))
        series += line_of(
            record.phases, chart.id, label, color, style="dots" if len(record.phases) < SMOOTH_FROM else "line"
        )
    return replace(chart, x="step", series=series, id=f"phase_{chart.id}")

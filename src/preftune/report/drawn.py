"""The charts of a run that draws what it learns from."""

from __future__ import annotations

from msgspec.structs import replace

from preftune.report.series import SMOOTH_FROM, Chart, Runs, Series, color_of, line_of


def drawn_charts(runs: Runs) -> list[Chart]:
    """All of them; those of runs that draw nothing have no series."""
    return [
        _over_kl(runs),
        _phases(runs, Chart("tokens", "Length of the draws", "tokens", "A steady climb that the task does not ask for "
            "is a reward that pays for length.", floor=True)),
        _phases(runs, Chart("ended", "Ended", "share of the draws", "Below nine in ten, raise rollout.max_tokens or "
            "set reward.missing_end.", percent=True)),
        _phases(runs, Chart("distinct", "Distinct", "share of the draws", "Near zero all responses to a prompt are the "
            "same and teach nothing.", percent=True)),
    ]  # fmt: skip


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


def _phases(runs: Runs, chart: Chart) -> Chart:
    """A number of the phases."""
    series: list[Series] = []
    for index, (name, record) in enumerate(runs):
        label, color = ("Drawn", "held") if len(runs) == 1 else (name, color_of(index))
        series += line_of(
            record.phases, chart.id, label, color, style="dots" if len(record.phases) < SMOOTH_FROM else "line"
        )
    return replace(chart, x="step", series=series, id=f"phase_{chart.id}")

"""The sink that a person watches: one live line on a terminal or in a notebook, plain lines elsewhere.

Held by tests/record/test_terminal.py.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec

from rich import progress
from rich.console import Console
from rich.table import Column
from rich.text import Text

from preftune.errors import printable
from preftune.events import (
    Evaluated,
    Event,
    Happened,
    Metrics,
    Note,
    PhaseDrawn,
    Progress,
    StepDone,
    is_decided,
    listening,
)

PLAIN_EVERY = 10.0  # seconds between plain lines of one stage
WIDE = 130  # characters that a live line with everything takes
WATCHED = {
    "loss": "loss {:.4f}", "perplexity": "perplexity {:.4g}", "margin": "margin {:+.3f}", "accuracy": "accuracy {:.1%}",
    "score": "score {:.3f}", "kl": "KL {:.3f}", "tokens": "{:.0f} tokens", "ended": "{:.0%} ended",
}  # fmt: skip


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Show the events of this block on stderr."""
    console = Console(stderr=True, highlight=False)
    if _can_be_live(console):
        with LiveLine(console) as line, listening(line):
            yield
    else:
        with listening(PlainLines()):
            yield


def default_progress() -> contextlib.AbstractContextManager[None]:
    """What a call from Python shows: nothing where the caller has a sink, or asked for silence."""
    return contextlib.nullcontext() if is_decided() else terminal()


def _can_be_live(console: Console) -> bool:
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None  # what rich draws with in a notebook
    return console.is_terminal


def summary(metrics: Metrics) -> str:
    """The metrics that a person watches, in one line."""
    parts = []
    for name, text in WATCHED.items():
        value = metrics.get(name)
        if value is not None:
            parts.append(text.format(value))
    rewards = {name: value for name, value in metrics.items() if name.startswith("reward ") and value is not None}
    if len(rewards) > 1:  # one alone is the score
        parts += [f"{name.partition(' ')[2]} {value:.3f}" for name, value in rewards.items()]
    seconds, tokens = metrics.get("seconds"), metrics.get("tokens_computed")
    if seconds and tokens:
        parts.append(f"{tokens / seconds:,.0f} tokens/s")
    return "  ".join(parts)


def _sentence(event: Note | Happened | Evaluated | PhaseDrawn) -> str:
    """What is shown of an event that is no progress."""
    if isinstance(event, PhaseDrawn):
        return f"phase {event.phase + 1} drawn  {summary(event.metrics)}"
    return f"evaluated  {summary(event.metrics)}" if isinstance(event, Evaluated) else printable(event.text)


class PlainLines:
    """Writes a line for each sentence, and one every ten seconds for the progress of a stage."""

    def __init__(self) -> None:
        self.stage, self.written_at = "", 0.0

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Progress | StepDone):
            self.stage = ""
            self._write(_sentence(event))
            return
        stage, finished, total, numbers = _progress(event)
        now = time.monotonic()
        if stage != self.stage or finished == total or now - self.written_at >= PLAIN_EVERY:
            self.stage, self.written_at = stage, now
            self._write(f"{stage} {finished}/{total}  {numbers}".rstrip())

    def _write(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


class LiveLine:
    """Draws the progress of one stage in place, and sentences above it."""

    def __init__(self, console: Console) -> None:
        wide = console.width >= WIDE
        columns = [
            progress.TextColumn("{task.description}"),
            *([progress.BarColumn(bar_width=24)] if wide else []),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}", table_column=Column(overflow="fold")),  # may wrap
            *([progress.TimeElapsedColumn(), progress.TextColumn("left")] if wide else []),
            progress.TimeRemainingColumn(),
        ]
        self.bars, self.wide = progress.Progress(*columns, console=console), wide
        self.tasks: dict[str, progress.TaskID] = {}

    def __enter__(self) -> LiveLine:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.refresh()  # in a notebook, stopping does not draw what came last
        self.bars.stop()

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Progress | StepDone):
            self.bars.console.print(Text(_sentence(event), style="dim"), soft_wrap=True)
            return
        stage, finished, total, numbers = _progress(event)
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=total, numbers="")
        for other, task in self.tasks.items():
            self.bars.update(task, visible=other == stage)
        if not self.wide:
            numbers = numbers.replace("accuracy", "acc").replace("tokens/s", "tok/s").replace("  ", " ")
        self.bars.update(self.tasks[stage], completed=finished, total=total, numbers=numbers)


def _progress(event: Progress | StepDone) -> tuple[str, int, int, str]:
    """Stage, how much of it is finished, of how much, and its numbers."""
    if isinstance(event, StepDone):
        return "training", event.step, event.steps, summary(event.metrics)
    return event.stage, event.finished, event.total, ""

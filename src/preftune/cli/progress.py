"""One live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

if TYPE_CHECKING:
    from preftune.record.show import Show

Numbers = Mapping[str, float | int | str | None]
PLAIN_EVERY = 10.0  # seconds between plain lines of one stage
WIDE = 130  # characters that a live line with everything takes


@contextlib.contextmanager
def progress() -> Iterator[Show]:
    """What `train` and `score` report to, for as long as the block lasts."""
    if sys.stderr.isatty():
        with _Live(Console(stderr=True, highlight=False)) as live:
            yield live
    else:
        yield _Plain()


def told(numbers: Numbers) -> str:
    """The meters that a person watches, in one line."""
    found = []
    for name, text in (("loss", "loss {:.4f}"), ("margin", "margin {:+.3f}"), ("accuracy", "accuracy {:.1%}")):
        value = numbers.get(name)
        if isinstance(value, float):
            found.append(text.format(value))
    seconds, tokens = numbers.get("seconds"), numbers.get("tokens_computed")
    if isinstance(seconds, float) and isinstance(tokens, int) and seconds:
        found.append(f"{tokens / seconds:,.0f} tokens/s")
    return "  ".join(found)


class _Plain:
    def __init__(self) -> None:
        self.stage, self.last = "", 0.0

    def __call__(self, stage: str, done: int = 0, total: int = 0, numbers: Numbers | None = None) -> None:
        now = time.monotonic()
        if stage == self.stage and done != total and now - self.last < PLAIN_EVERY:
            return
        self.stage, self.last = stage, now
        count = f" {done}/{total}" if total else ""
        sys.stderr.write(f"{stage}{count}{'  ' + told(numbers) if numbers else ''}\n")
        sys.stderr.flush()


class _Live:
    def __init__(self, console: Console) -> None:
        wide = console.width >= WIDE
        columns = [
            TextColumn("{task.description}"),
            *([BarColumn(bar_width=24)] if wide else []),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", table_column=Column(overflow="fold")),  # gives way
            *([TimeElapsedColumn(), TextColumn("left")] if wide else []),
            TimeRemainingColumn(),
        ]
        self.bar, self.wide = Progress(*columns, console=console), wide
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Live:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, stage: str, done: int = 0, total: int = 0, numbers: Numbers | None = None) -> None:
        text = told(numbers) if numbers else ""
        if not total:
            self.bar.console.print(Text(f"{stage}  {text}".rstrip(), style="dim"), soft_wrap=True)
            return
        if stage not in self.tasks:
            for ended in self.tasks.values():
                self.bar.update(ended, visible=False)
            self.tasks[stage] = self.bar.add_task(stage, total=total, numbers="")
        if not self.wide:
            text = text.replace("accuracy", "acc").replace("tokens/s", "tok/s").replace("  ", " ")
        self.bar.update(self.tasks[stage], completed=done, total=total, numbers=text)

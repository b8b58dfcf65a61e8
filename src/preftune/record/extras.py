"""What the author of a run adds to its page: `extras.json` of the record."""

from __future__ import annotations

from msgspec import Struct

Cell = str | int | float | bool | None


class ExtraTable(Struct, frozen=True):
    """A table that the run's author wants in its page."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


class Curve(Struct, frozen=True):
    """A line, or a point where there is one number of each."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


class ExtraChart(Struct, frozen=True):
    """Curves that the run's author wants in its page. x, y: what the axes measure."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    note: str = ""


class Rewrite(Struct, frozen=True):
    """What the model wrote to one prompt before and after training."""

    prompt: str
    before: str
    after: str


class Extras(Struct, frozen=True):
    """Additions of the run's author."""

    tables: tuple[ExtraTable, ...] = ()
    samples: tuple[Rewrite, ...] = ()
    charts: tuple[ExtraChart, ...] = ()

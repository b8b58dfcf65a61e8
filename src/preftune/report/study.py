"""A study to one page in the style of a run's report: panels of sentences, charts and tables, which open offline.

The policy and the escaping are those of `report/page.py`. Held by tests/tradeoff/test_page.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from preftune.record.extras import Cell
from preftune.report.charts import Chart
from preftune.report.page import document

FOLDED = 12  # rows beyond which a table that has charts is folded


class Panel(Struct, frozen=True):
    """A section: what it shows in a sentence or two, its charts, and its table."""

    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()


class Study(Struct, frozen=True):
    """kind: what the page is, in two words; lead: what it found, in a few sentences; foot: how it was made."""

    kind: str
    title: str
    lead: str
    panels: Sequence[Panel]
    foot: str


def study_page(study: Study) -> str:
    """One HTML document."""
    drawn = [chart for panel in study.panels for chart in panel.charts]
    return document("study.html", drawn, {"study": study, "folded": FOLDED})

"""Records to one self-contained page: no request leaves it, and no text of a record can act in it.

The content policy allows two scripts, by their hash: plotly's and the page's own. Text goes through autoescape, the
charts' data through a JSON block in which no tag can begin, and control characters are written as codes.
Held by tests/report/test_page.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from preftune.diagnosis import CHECKS, diagnose
from preftune.errors import UserError
from preftune.record.extras import Cell
from preftune.record.reader import Record
from preftune.report import charts, compare, figures, words
from preftune.report.words import visible

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
INERT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
REWRITES = 12  # samples that a page shows at most
SHOWN = 3  # those that it shows unfolded


def page(records: Sequence[Record], failed: Mapping[str, str] | None = None) -> str:
    """One HTML document about one run, or about several side by side. failed: runs of a sweep that did not come to
    their end, with why. Raises UserError for no records."""
    if not records:
        raise UserError("a report needs at least one record.", hint="Name the `out` folder of a run.")
    names = compare.names(records)
    sections = charts.charts([(visible(name), record) for name, record in zip(names, records, strict=True)])
    lengths = charts.lengths(records[0]) if len(records) == 1 else None
    extra = charts.extra(records[0]) if len(records) == 1 else []
    drawn = [*extra, *(chart for _, group in sections for chart in group), *([lengths] if lengths else [])]
    return document("page.html", drawn, {
        "records": records,
        "record": records[0],
        "names": names,
        "failed": failed or {},
        "sections": sections,
        "extra": extra,
        "lengths": lengths,
        "findings": [diagnose(record) for record in records],
        "checks": len(CHECKS),
        "keys": compare.differing(records),
        "columns": compare.columns(records),
        "results": compare.results(records),
        "comparable": compare.comparable(records),
        "drawn": compare.draw(records),
        "differences": compare.differences(records),
        "seeds_note": compare.seeds_note(records),
        "rewrites": records[0].extras.samples[:REWRITES],
        "shown": SHOWN,
        "samples": [sample for sample in records[0].samples if sample.after is not None][:REWRITES],
    })  # fmt: skip


def document(template: str, drawn: Sequence[charts.Chart], values: Mapping[str, object]) -> str:
    """A template of this folder as one HTML document that draws these charts. values: what else the template names."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    library, script, style = get_plotlyjs(), _text("page.js"), _text("page.css")
    policy = content_policy(library, script)
    return templates().get_template(template).render(
        {**values, "policy": policy, "style": Markup(style), "library": Markup(library), "script": Markup(script),
         "data": Markup(inert(drawn))}
    )  # fmt: skip


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def inert(value: object) -> str:
    """JSON in which no tag, comment or entity can begin; what is no number becomes null."""
    return msgspec.json.encode(value).decode().translate(INERT)


def numeric(rows: Sequence[Sequence[Cell]]) -> set[int]:
    """Indices of the columns that hold numbers only; they are aligned to the right."""
    columns = [[cell for cell in column if cell is not None] for column in zip_longest(*rows)]
    return {i for i, cells in enumerate(columns) if cells and not any(isinstance(c, str | bool) for c in cells)}


def configuration(record: Record) -> str:
    """run.toml without the name of the reader's home folder."""
    home = str(Path.home())
    return record.run_text.replace(home, "~") if len(home) > 1 else record.run_text


def versions(record: Record) -> list[tuple[str, str]]:
    """environment.json, one line a key."""
    return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in record.environment.items()]


def content_policy(*scripts: str) -> str:
    """The content policy. Plotly sets styles by script, so styles may be inline; nothing may be fetched."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; " \
        "form-action 'none'"  # fmt: skip


@cache
def templates() -> Environment:
    """What renders pages; a template is compiled once."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )  # fmt: skip
    environment.globals |= {"words": words, "figures": figures, "configuration": configuration, "versions": versions,
                            "numeric": numeric, "describe": charts.describe}  # fmt: skip
    environment.filters |= {"number": words.number, "share": words.share}
    return environment

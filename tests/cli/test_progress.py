"""The live line keeps step, meters and time at every width, and what it is told is text, never markup."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from preftune.cli.progress import _Live

NUMBERS = {"loss": 0.1956, "margin": 126.103, "accuracy": 1.0, "seconds": 0.5, "tokens_computed": 5000}


@pytest.mark.parametrize("width", [60, 80, 100, 130, 200])
def test_nothing_is_cut_off(width: int) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=width, color_system=None)
    with _Live(console) as show:
        show("reading [b]rows[/b]")
        show("scoring the reference", 3, 110)
        show("training", 1234, 5000, NUMBERS)
        show.bar.refresh()
        last = show.bar.get_renderable()
    assert "reading [b]rows[/b]" in written.getvalue()
    with console.capture() as captured:
        console.print(last)
    shown = captured.get()
    for part in ("training", "1234/5000", "loss 0.1956", "margin +126.103", "100.0%", "10,000 tok", ":"):
        assert part in shown
    assert "…" not in shown
    assert "reference" not in shown
    assert len(shown.strip().splitlines()) == (2 if width == 60 else 1)

"""The live line keeps step, metrics and time at every width; what events say is text, never markup."""

from __future__ import annotations

import io
import sys
import types

import pytest
from rich.console import Console

from preftune.events import Evaluated, Event, Happened, Note, Progress, StepDone, emit, is_decided, listening, silence
from preftune.record import terminal as module
from preftune.record.terminal import LiveLine, PlainLines, default_progress, terminal

METRICS = {"loss": 0.1956, "margin": 126.103, "accuracy": 1.0, "seconds": 0.5, "tokens_computed": 5000}
EVENTS: list[Event] = [
    Note("reading [b]rows[/b]\x1b[2J"),
    Progress("scoring the reference", 3, 110),
    StepDone(1234, 5000, METRICS),
]


@pytest.mark.parametrize("width", [60, 80, 100, 130, 200])
def test_nothing_is_cut_off(width: int) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=width, color_system=None)
    with LiveLine(console) as line, listening(line):
        for event in [EVENTS[2], *EVENTS]:
            emit(event)
        line.bars.refresh()
        last = line.bars.get_renderable()
    assert "reading [b]rows[/b]\\x1b[2J" in written.getvalue()
    with console.capture() as captured:
        console.print(last)
    shown = captured.get()
    for part in ("training", "1234/5000", "loss 0.1956", "margin +126.103", "100.0%", "10,000 tok", ":"):
        assert part in shown
    assert "…" not in shown
    assert "reference" not in shown
    assert len(shown.strip().splitlines()) == (2 if width == 60 else 1)


def test_elsewhere_each_sentence_is_a_line_and_progress_one_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal():
        for event in [
            *EVENTS[:2],
            *(StepDone(step, 3, METRICS) for step in (1, 2, 3)),
            Evaluated(3, {"loss": 0.5}),
            Happened(3, "finished", "finished after 3 steps"),
        ]:
            emit(event)
    numbers = "loss 0.1956  margin +126.103  accuracy 100.0%  10,000 tokens/s"
    assert capsys.readouterr().err.splitlines() == [
        "reading [b]rows[/b]\\x1b[2J",
        "scoring the reference 3/110",
        f"training 1/3  {numbers}",
        f"training 3/3  {numbers}",
        "evaluated  loss 0.5000",
        "finished after 3 steps",
    ]
    assert not is_decided()


@pytest.mark.parametrize("sink", ["none", "the caller's"])
def test_a_call_from_python_shows_progress_unless_the_caller_listens(
    sink: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log of a job is read too, not a terminal alone."""
    events: list[Event] = []
    with listening(*([events.append] if sink != "none" else [])), default_progress():
        emit(Note("loading"))
    assert events == ([Note("loading")] if sink != "none" else [])
    assert ("loading" in capsys.readouterr().err) == (sink == "none")
    with silence(), default_progress():
        emit(Note("loading"))
    assert capsys.readouterr() == ("", "")


def test_a_notebook_gets_the_live_line_where_it_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich draws in a notebook with IPython and ipywidgets; here they are stand-ins that keep what they are given."""
    drawn: list[object] = []

    class Output:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

        def clear_output(self, *, wait: bool) -> None:
            pass

    display = types.SimpleNamespace(display=lambda *objects, **_: drawn.extend(objects))
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setitem(sys.modules, "ipywidgets", types.SimpleNamespace(Output=Output))
    console = Console(stderr=True, force_jupyter=True, width=100)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert not module._can_be_live(console), "without ipywidgets rich would draw nothing"
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    assert module._can_be_live(console)
    with LiveLine(console) as line, listening(line):
        for event in EVENTS:
            emit(event)
    html = "".join(str(item.html) for item in drawn if not isinstance(item, Output))
    assert "1234/5000" in html
    assert "reading [b]rows[/b]" in html


NASTY = "a\x1b]0;x\x07\u202e[b]m[/b]\rpreftune: done\nmodel  /elsewhere"
SAFE = r"a\x1b]0;x\x07\u202e[b]m[/b]\rpreftune: done\nmodel  /elsewhere"


@pytest.mark.parametrize("event", [Note(NASTY), Happened(1, "layout", NASTY)])
@pytest.mark.parametrize("live", [False, True])
def test_no_event_begins_a_line_of_its_own_or_commands_the_terminal(event: Event, live: bool) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=live, width=200, color_system=None)
    if live:
        with LiveLine(console) as line, listening(line):
            emit(event)
        assert SAFE in written.getvalue()
        assert "\n" + "model  /elsewhere" not in written.getvalue()
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", written)
            PlainLines()(event)
        assert written.getvalue() == f"{SAFE}\n"

"""What a run reports while it goes on, and who reads it.

Code that has something to report calls `emit`; nothing is passed along. A sink is any callable that takes an event:
the record's JSON lines, the terminal, a tracker, or a function of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

Metrics = Mapping[str, float | int | None]


class Progress(NamedTuple):
    """How far a stage has come. `total` is never 0."""

    stage: str
    finished: int
    total: int


class Note(NamedTuple):
    """One sentence for the person who waits; the record does not keep it."""

    text: str


class Happened(NamedTuple):
    """Something that happened once, a line of events.jsonl. step: updates done before it; text: one sentence."""

    step: int
    kind: str
    text: str
    details: Mapping[str, object] = {}


class StepDone(NamedTuple):
    """One update's metrics (record.schema.STEP), a line of metrics.jsonl. step: its number, from 1, of `steps`."""

    step: int
    steps: int
    metrics: Metrics


class Evaluated(NamedTuple):
    """One evaluation's metrics (record.schema.EVALUATION), a line of evaluations.jsonl. step: updates before it."""

    step: int
    metrics: Metrics


class PhaseDrawn(NamedTuple):
    """What was drawn in a phase (record.schema.PHASE), a line of phases.jsonl. step: updates before it."""

    phase: int
    step: int
    metrics: Metrics


Event = Progress | Note | Happened | StepDone | Evaluated | PhaseDrawn
Sink = Callable[[Event], object]  # a reader of events


_sinks: ContextVar[tuple[Sink, ...] | None] = ContextVar("sinks", default=None)  # None: nobody said who listens


def emit(event: Event) -> None:
    """Give an event to every sink that listens now."""
    for sink in _sinks.get() or ():
        sink(event)


def is_decided() -> bool:
    """Whether a caller has said who listens: a sink of its own, by `listening`, or nobody, by `silence`."""
    return _sinks.get() is not None


@contextmanager
def listening(*sinks: Sink) -> Iterator[None]:
    """Let these sinks receive every event of the block, in addition to those that listen already."""
    before = _sinks.get()
    token = _sinks.set((*(before or ()), *sinks) if sinks else before)
    try:
        yield
    finally:
        _sinks.reset(token)


@contextmanager
def silence() -> Iterator[None]:
    """Let no sink receive the events of the block, and show no progress, as on ranks other than the first."""
    token = _sinks.set(())
    try:
        yield
    finally:
        _sinks.reset(token)

"""Signals that ask a run to stop: it ends within a second, and what was computed up to the last update is saved.

Where there is nothing to save, as in loading, a signal ends the work wherever it is (`interruptible`). Loops whose
state has to stay whole ask between their packs (`check`). Held by tests/laws/test_signals.py.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from preftune.errors import STOPPED, UserError

if TYPE_CHECKING:
    from preftune.distributed import Distributed

ENDING = (signal.SIGTERM, signal.SIGINT)  # a second one of these ends the process at once
HEARD = (*ENDING, signal.SIGUSR1, signal.SIGHUP)  # clusters warn with the third, a terminal that closes with the last
_stops: list[Stop] = []  # one for each block of `listening` that this process is in, the innermost last


class Stop:
    """asked: name of the signal that came to this process, or an empty string; at_once: raise where it comes;
    deferred: ask only where all ranks do."""

    def __init__(self) -> None:
        self.asked = ""
        self.at_once = self.deferred = False


class Stopped(UserError):
    """A run was asked to stop (exit code 75)."""

    def __init__(self, signal_name: str) -> None:
        text = f"stopped by {signal_name}; everything done is saved."
        super().__init__(text, hint="Go on with --resume.", code=STOPPED)


class _Interrupt(BaseException):
    """Ends an `interruptible` block; not an Exception, so that no library takes it for an error of its own."""


def check() -> None:
    """Raise `Stopped` if a signal has asked the innermost run to stop."""
    if _stops and _stops[-1].asked and not _stops[-1].deferred:
        raise Stopped(_stops[-1].asked)


def agreed(dist: Distributed) -> str:
    """Name of a signal that has asked some rank to stop, the same on all of them; or an empty string."""
    asked = _stops[-1].asked if _stops else ""
    number = dist.max(signal.Signals[asked] if asked else 0)
    return signal.Signals(number).name if number else ""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """In this block, of which nothing is to be saved, a signal ends the work wherever it is."""
    check()
    if not _stops:
        yield
        return
    stop = _stops[-1]
    try:
        stop.at_once = True
        yield
    except _Interrupt:
        raise Stopped(stop.asked) from None
    finally:
        stop.at_once = False
    check()


@contextlib.contextmanager
def interruptible_together(dist: Distributed) -> Iterator[None]:
    """`interruptible` for ranks that each do a part: where one is stopped, all are, after the others' parts."""
    with dist.agreed(), contextlib.suppress(Stopped), interruptible():
        yield
    if name := agreed(dist):
        raise Stopped(name)


@contextlib.contextmanager
def deferred(*, condition: bool) -> Iterator[None]:
    """In this block, where the condition holds, only `agreed` says that a run is to stop."""
    stop = _stops[-1] if condition and _stops else Stop()
    stop.deferred = True
    try:
        yield
    finally:
        stop.deferred = False


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Handle the signals while a run lasts; those that the process was started to ignore stay ignored.

    A second SIGTERM or SIGINT ends the process at once; checkpoints stay whole. Blocks may be nested, as a run in a
    sweep is. A signal that came too late for the inner run stops the outer.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in HEARD}
    previous = {number: handler for number, handler in previous.items() if handler is not signal.SIG_IGN}

    def handle(number: int, _: object) -> None:
        if number in ENDING and stop.asked in [ending.name for ending in ENDING]:
            raise SystemExit(128 + number)
        stop.asked = signal.Signals(number).name
        if stop.at_once:
            stop.at_once = False
            raise _Interrupt

    for number in previous:
        signal.signal(number, handle)
    _stops.append(stop)
    try:
        yield stop
    except _Interrupt:  # one that came as its block was left
        raise Stopped(stop.asked) from None
    finally:
        _stops.remove(stop)
        if _stops and stop.asked:
            _stops[-1].asked = stop.asked
        for number, handler in previous.items():
            signal.signal(number, handler)

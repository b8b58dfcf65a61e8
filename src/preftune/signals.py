"""SIGTERM and SIGINT ask a run to stop; it stops at its next step boundary, with a checkpoint."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from preftune.distributed import Distributed
from preftune.errors import STOPPED, UserError

_stops: list[Stop] = []  # one for each block of `listening` that this process is in, the innermost last


class Stop:
    """asked: name of the signal that came to this process, or an empty string."""

    def __init__(self) -> None:
        self.asked = ""

    def agreed(self, dist: Distributed) -> str:
        """Name of a signal that came to some rank, the same on all of them; or an empty string."""
        number = dist.max(signal.Signals[self.asked] if self.asked else 0)
        return signal.Signals(number).name if number else ""


def check() -> None:
    """Raise `stopped` if a signal has asked the innermost run to stop."""
    if _stops and _stops[-1].asked:
        raise stopped(_stops[-1].asked)


def stopped(signal_name: str) -> UserError:
    """The error that ends a run which was asked to stop (exit code 75)."""
    return UserError(f"stopped by {signal_name}; everything done is saved.", hint="Go on with --resume.", code=STOPPED)


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Handle the two signals while a run lasts. A second one ends the process at once; checkpoints stay whole.

    Blocks may be nested, as a run in a sweep is. A signal that came too late for the inner run stops the outer.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, _: object) -> None:
        if stop.asked:
            raise SystemExit(128 + number)
        stop.asked = signal.Signals(number).name

    for number in previous:
        signal.signal(number, handle)
    _stops.append(stop)
    try:
        yield stop
    finally:
        _stops.remove(stop)
        if _stops and stop.asked:
            _stops[-1].asked = stop.asked
        for number, handler in previous.items():
            signal.signal(number, handler)

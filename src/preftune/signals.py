"""SIGTERM and SIGINT ask a run to stop; it does so at its next step boundary, with a checkpoint."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from preftune.distributed import Distributed
from preftune.errors import STOPPED, UserError

_nested: list[Stop] = []


class Stop:
    """asked: name of the signal that came to this process, or an empty string."""

    def __init__(self) -> None:
        self.asked = ""

    def check(self) -> None:
        """Raise `stopped` where a stop was asked for."""
        if self.asked:
            raise stopped(self.asked)

    def agreed(self, dist: Distributed) -> str:
        """Name of a signal that came to some rank, the same on all of them; or an empty string."""
        number = dist.max(signal.Signals[self.asked] if self.asked else 0)
        return signal.Signals(number).name if number else ""


def stopped(by: str) -> UserError:
    """What a run ends with that was asked to stop (exit code 75)."""
    return UserError(f"stopped by {by}; everything done is saved.", hint="Go on with --resume.", code=STOPPED)


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Take the two signals while a run lives. A second one ends the process at once, checkpoints staying whole.

    Inside another, as a run in a sweep: what came too late for the inner one is heard by the outer.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def hear(number: int, _: object) -> None:
        if stop.asked:
            raise SystemExit(128 + number)
        stop.asked = signal.Signals(number).name

    for number in before:
        signal.signal(number, hear)
    _nested.append(stop)
    try:
        yield stop
    finally:
        _nested.remove(stop)
        if _nested and stop.asked:
            _nested[-1].asked = stop.asked
        for number, handler in before.items():
            signal.signal(number, handler)

"""SIGTERM and SIGINT ask a run to stop; it does so at its next step boundary, with a checkpoint."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from preftune.errors import STOPPED, UserError


class Stop:
    """asked: name of the signal that came, or an empty string."""

    def __init__(self) -> None:
        self.asked = ""

    def check(self) -> None:
        """Raise UserError (exit code 75) where a stop was asked for."""
        if self.asked:
            raise UserError(
                f"stopped by {self.asked}; everything done is saved.", mend="Go on with --resume.", code=STOPPED
            )


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Take the two signals while a run lives. A second one ends the process at once, checkpoints staying whole."""
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
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

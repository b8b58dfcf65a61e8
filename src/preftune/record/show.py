"""What a run tells while it goes on, and to whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Show(Protocol):
    """Receives a line, or how far a stage is. `total` 0 means a plain sentence; numbers: meters of the step, if any."""

    def __call__(
        self, stage: str, done: int = 0, total: int = 0, numbers: Mapping[str, float | int | str | None] | None = None
    ) -> None: ...


def silent(
    stage: str, done: int = 0, total: int = 0, numbers: Mapping[str, float | int | str | None] | None = None
) -> None:
    """Show nothing."""

"""Where the groups of a run come from: a phase after the other, each with its plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from preftune.pack.plan import Phase


class Source(Protocol):
    """Gives the phases of a run that are left after `step` updates. How many steps they have together is known before
    the first of them: `steps`."""

    @property
    def steps(self) -> int: ...

    def phases(self, step: int) -> Iterator[Phase]: ...


@dataclass(frozen=True)
class Offline:
    """Rows that were there before training: one phase."""

    phase: Phase

    @property
    def steps(self) -> int:
        return len(self.phase.plan.steps)

    def phases(self, step: int) -> Iterator[Phase]:
        yield self.phase

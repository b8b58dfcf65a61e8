"""A record begun, or taken up where its newest whole checkpoint stands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch

from preftune.config.run import Run
from preftune.errors import CORRUPT, UserError
from preftune.ranks import Ranks
from preftune.record.record import Record, environment, other_environment, start
from preftune.training import state as checkpoints
from preftune.training.identity import compare, identity
from preftune.training.setup import Setup
from preftune.training.show import Show
from preftune.training.state import State


def as_before(run: Run, out: Path, ranks: Ranks) -> Run:
    """Where the budget of a pack was left open, the one that the run began with."""
    if run.batch.tokens is not None:
        return run
    tokens = ranks.of_first(json.loads((out / "identity.json").read_text())["batch.tokens"] if ranks.first else 0)
    return msgspec.structs.replace(run, batch=msgspec.structs.replace(run.batch, tokens=tokens))


def open_record(setup: Setup, state: State, record: Record, allow_change: Sequence[str] | None, show: Show) -> None:
    """Write down what run this is. allow_change: keys in which it may differ from what is there; None: it is new.

    Raises UserError, with nothing written, where what is there cannot be gone on with.
    """
    now = identity(setup.run, setup.digests)
    around = environment(setup.run, setup.digests, str(setup.policy.device), torch.get_num_threads(), setup.ranks.count)
    if allow_change is not None:
        _take_up(setup, state, record, now, allow_change, show)
    record.json("identity.json", now)
    if allow_change is not None and (moved := other_environment(record.path, around)):
        record.event(state.step, "note", f"bits may differ from before: {', '.join(moved)}")
    record.json("environment.json", around)
    record.json("data.json", setup.prepared.account)
    start(record.path, setup.run)
    for kind, (text, details) in setup.notes.items():
        record.event(state.step, kind, text, **details)


def _take_up(
    setup: Setup, state: State, record: Record, now: Mapping[str, object], allow_change: Sequence[str], show: Show
) -> None:
    """Load the newest whole checkpoint, cut the record back to it, and say so."""
    changes = compare(record.path / "identity.json", now, allow_change)
    found, passed = checkpoints.newest(record.checkpoints)
    if found is not None:
        checkpoints.load(state, found)
    elif passed:
        raise UserError(f"no checkpoint is whole: {'; '.join(passed)}.", where=str(record.checkpoints), code=CORRUPT,
                        mend="Start again from the beginning with --force, or take another `out`.")  # fmt: skip
    if changes and state.step == len(setup.plan.steps):
        raise UserError(f"this run is done, and would not become another one: {', '.join(changes)}.",
                        where=str(record.path), mend="Set it back, or start anew in another `out`.")  # fmt: skip
    record.rewind(state.step if found is not None else -1)
    text = f"resumed at step {state.step}" + (f"; changed: {', '.join(changes)}" if changes else "")
    record.event(state.step, "resumed", text, passed_over=passed)
    for sentence in (text, *(f"passed over {why}" for why in passed)):
        show(sentence)

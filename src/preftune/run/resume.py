"""A record begun, or taken up where its newest whole checkpoint stands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch

from preftune.config.run import Run
from preftune.distributed import Distributed
from preftune.errors import CORRUPT, UserError
from preftune.record.show import Show
from preftune.record.writer import Record, environment, other_environment, start
from preftune.run.identity import compare, identity
from preftune.run.prepare import Setup
from preftune.training import checkpoint as checkpoints
from preftune.training.checkpoint import State


def with_recorded_budget(run: Run, out: Path, dist: Distributed) -> Run:
    """Where the budget of a pack was left open, the one that the run began with."""
    if run.batch.tokens is not None:
        return run
    tokens = dist.broadcast_int(json.loads((out / "identity.json").read_text())["batch.tokens"] if dist.first else 0)
    return msgspec.structs.replace(run, batch=msgspec.structs.replace(run.batch, tokens=tokens))


def begin_or_resume(setup: Setup, state: State, record: Record, allow_change: Sequence[str] | None, show: Show) -> None:
    """Write down what run this is. allow_change: keys in which it may differ from what is there; None: it is new.

    Raises UserError, with nothing written, where what is there cannot be gone on with.
    """
    now = identity(setup.run, setup.digests)
    around = environment(
        setup.run, setup.digests, str(setup.policy.device), torch.get_num_threads(), setup.dist.world_size
    )
    if allow_change is not None:
        restore(setup, state, record, now, allow_change, show)
    record.json("identity.json", now)
    if allow_change is not None and (moved := other_environment(record.path, around)):
        record.event(state.step, "note", f"bits may differ from before: {', '.join(moved)}")
    record.json("environment.json", around)
    record.json("data.json", msgspec.to_builtins(setup.prepared.account))
    start(record.path, setup.run)
    for kind, (text, details) in setup.notes.items():
        record.event(state.step, kind, text, **details)


def restore(
    setup: Setup, state: State, record: Record, now: Mapping[str, object], allow_change: Sequence[str], show: Show
) -> None:
    """Load the newest whole checkpoint, cut the record back to it, and say so."""
    changes = compare(record.path / "identity.json", now, allow_change)
    found, passed = checkpoints.newest(record.checkpoints)
    if found is not None:
        checkpoints.load(state, found)
    elif passed:
        raise UserError(f"no checkpoint is whole: {'; '.join(passed)}.", location=str(record.checkpoints), code=CORRUPT,
                        hint="Start again from the beginning with --force, or take another `out`.")  # fmt: skip
    if changes and state.step == len(setup.plan.steps):
        raise UserError(f"this run is done, and would not become another one: {', '.join(changes)}.",
                        location=str(record.path), hint="Set it back, or start anew in another `out`.")  # fmt: skip
    record.rewind(state.step if found is not None else -1)
    text = f"resumed at step {state.step}" + (f"; changed: {', '.join(changes)}" if changes else "")
    record.event(state.step, "resumed", text, passed_over=passed)
    for sentence in (text, *(f"passed over {why}" for why in passed)):
        show(sentence)

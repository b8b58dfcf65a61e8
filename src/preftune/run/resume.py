"""A record begun, or resumed where its newest whole checkpoint stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import msgspec
import torch

from preftune import files, folders
from preftune.config.load import dump
from preftune.config.run import Run
from preftune.distributed import Distributed
from preftune.errors import CORRUPT, UserError
from preftune.events import Happened, Note, emit
from preftune.model.config import Precision
from preftune.objective import parts
from preftune.record.replace import EVALUATIONS, bytes_aside, replacing
from preftune.record.writer import RecordWriter, environment, environment_changes
from preftune.run.identity import Resumed, identity
from preftune.run.prepare import Prepared
from preftune.training import checkpoint
from preftune.training.best import refuse_lost_best, standing
from preftune.training.checkpoint import State


def with_recorded_keys(run: Run, out: Path, dist: Distributed) -> Run:
    """The run with what it leaves open as it was when it began: the budget of a pack, and the types that follow from
    the device."""
    recorded = json.loads((out / "identity.json").read_text()) if dist.first else {}
    if run.batch.tokens is None:
        tokens = dist.broadcast_int(recorded.get("batch.tokens", 0))
        run = msgspec.structs.replace(run, batch=msgspec.structs.replace(run.batch, tokens=tokens))
    types = get_args(Precision)
    for key in ("weights", "compute"):
        if getattr(run.model, key) == "auto":
            before = recorded.get(f"model.{key}")
            number = dist.broadcast_int(types.index(before) if before in types else types.index("auto"))
            run = msgspec.structs.replace(run, model=msgspec.structs.replace(run.model, **{key: types[number]}))
    return run


def begin_or_resume(prepared: Prepared, state: State, record: RecordWriter, resumed: Resumed | None) -> None:
    """Record which run this is. resumed: the one that is there, with which it goes on; None: it is new, and a run that
    is there is deleted now.

    Raises UserError, with nothing written, where the run that is there cannot be resumed.
    """
    with replacing(record.path) if resumed is None else nullcontext():
        record_run(prepared, state, record, resumed)


def record_run(prepared: Prepared, state: State, record: RecordWriter, resumed: Resumed | None) -> None:
    run, training = prepared.run, prepared.training
    checkpoint.assert_room(state, record.path, bytes_aside(record.path))
    run_identity = identity(run, prepared.digests)
    surroundings = environment(
        prepared.digests,
        device=str(training.models.policy.device),
        threads=torch.get_num_threads(),
        world_size=training.dist.world_size,
        seed=run.seed,
    )
    if resumed is not None:
        restore(prepared, state, record, resumed.changes(run_identity))
    record.json("identity.json", run_identity)
    if resumed is not None and (changes := environment_changes(record.path, surroundings)):
        emit(Happened(state.step, "note", f"bits may differ from before: {', '.join(changes)}"))
    record.json("environment.json", surroundings)
    record.json("data.json", msgspec.to_builtins(prepared.dataset.account))
    files.write(record.path / "run.toml", dump(run))
    for kind, (text, details) in prepared.notes.items():
        record(Happened(state.step, kind, text, details))  # the person has read it while the run was prepared
    if run.optim.rounding == "stochastic":
        text = "weights in bfloat16 are rounded at random after each update: none of it is lost on average"
        emit(Happened(state.step, "rounding", text))


def restore(prepared: Prepared, state: State, record: RecordWriter, changes: Sequence[str]) -> None:
    """Load the newest whole checkpoint, cut the record back to it, and say so. changes: what the run becomes."""
    training = prepared.training
    means = len(parts(training.loss.objective))
    newest, passed_over = checkpoint.load_newest(state, record.checkpoints, steps=training.source.steps, means=means)
    if newest is None and passed_over and changes:
        raise UserError(f"no checkpoint is of a run with these changes ({'; '.join(changes)}): {passed_over[0]}.",
                        location=str(record.path), hint="Set it back, or start anew in another `out`.")  # fmt: skip
    if newest is None and passed_over:
        raise UserError(f"no checkpoint is whole: {'; '.join(passed_over)}.", location=str(record.checkpoints),
                        hint="Start again with --force, or take another `out`.", code=CORRUPT)  # fmt: skip
    refuse_lost_best(training, state, record)
    over = standing(training, state.step, record.lines(EVALUATIONS)).over and record.finished_at() == state.step
    over = over or state.step == training.source.steps
    if changes and over:
        raise UserError(f"this run is done, and would not become another one: {', '.join(changes)}.",
                        location=str(record.path), hint="Set it back, or start anew in another `out`.")  # fmt: skip
    altered = altered_export(record.path)
    if altered is not None and not over:
        raise UserError("another has changed this file, which the end of this run replaces.", location=str(altered),
                        hint="Move it away, and go on with --resume.")  # fmt: skip
    if altered is not None:
        emit(Note(f"another has changed {altered} since this run wrote it; it stays as it is"))
    record.rewind(state.step if newest is not None else -1)
    text = f"resumed at step {state.step}" + (f"; changed: {', '.join(changes)}" if changes else "")
    record(Happened(state.step, "resumed", text, {"passed_over": passed_over}))
    for sentence in (text, *(f"passed over {reason}" for reason in passed_over)):
        emit(Note(sentence))


def altered_export(out: Path) -> Path | None:
    """A file of an exported model that another has changed since."""
    names = folders.not_ours(out / "model")
    return next((out / "model" / name for name in names if name in folders.listed(out / "model")), None)

"""A run, from its configuration to its record. All of training is `fit` in training/loop.py.

Held by tests/laws/test_trajectory.py and tests/golden.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from torch import Tensor

from preftune import events, files, folders, signals
from preftune.config.inputs import refuse_inside
from preftune.config.resolve import resolve
from preftune.config.run import Run
from preftune.config.tree import tree_of
from preftune.distributed import Distributed, process_group
from preftune.errors import NON_FINITE, UserError
from preftune.model.as_made import given_back
from preftune.model.modes import own_modes
from preftune.pack.oom import OomRetry
from preftune.record.reader import Record
from preftune.record.replace import CHECKPOINTS, IDENTITY
from preftune.record.terminal import default_progress
from preftune.record.trackers import assert_ready, guarded, tracking
from preftune.record.writer import RecordWriter, claim
from preftune.report import page
from preftune.run.dataset import Loader, load_dataset
from preftune.run.identity import Resumed
from preftune.run.online import prepare_online
from preftune.run.prepare import Prepared, prepare
from preftune.run.resume import begin_or_resume, with_recorded_keys
from preftune.run.shards import refuse_separate_disks, refuse_shards
from preftune.table import flatten
from preftune.training import checkpoint, state_of_ranks
from preftune.training.best import load_best
from preftune.training.checkpoint import State
from preftune.training.learner import Learner
from preftune.training.loop import fit
from preftune.training.optimizer import adamw

MODEL, REPORT = "model", "report.html"


def train(
    run: Run, *, resume: bool = False, force: bool = False, allow_change: Sequence[str] = (),
    sinks: Sequence[events.Sink] = (), load: Loader = load_dataset,
) -> Path:  # fmt: skip
    """Do a run and return the folder of its record.

    resume: go on with the run in the folder, to the same bits; allow_change: keys in which it may differ.
    force: replace a run that is there, once nothing may refuse this one any more, which reads nothing of it. sinks:
    callables that receive each event of the run (see preftune.events), in place of the progress on stderr; one that
    raises is dropped. load: what reads and tokenizes. Raises UserError with the exit code as `code`.
    """
    if resume and force:
        raise UserError("--resume and --force cannot be combined.", hint="Go on with the run, or replace it.")
    run = resolve(run)
    assert_ready(run.track)
    out = Path(run.out).expanduser()
    if force:
        refuse_inside(run, out)
    with own_modes(), process_group() as dist, given_back(run.model.path), ExitStack() as stack:
        refuse_shards(run, dist)
        if dist.first:
            stack.enter_context(files.lock(out / ".lock"))
            stack.enter_context(events.listening(*map(guarded, sinks)) if sinks else default_progress())
        else:
            stack.enter_context(events.silence())
        stack.enter_context(signals.listening())
        resumed = None
        if dist.broadcast_int(dist.first and claim(out, resume=resume, force=force)):
            run, resumed = with_recorded_keys(run, out, dist), Resumed(out / IDENTITY, allow_change)
        online = run.rollout is not None
        prepared = prepare_online(run, dist, resumed) if online else prepare(run, dist, load, resumed)
        state, record = new_state(prepared), None
        if state.weights.sharded:
            refuse_separate_disks(out, dist)
        start = state.weights.sampled()
        if dist.first:
            record = stack.enter_context(closing(RecordWriter(out)))
            stack.enter_context(events.listening(record))
            begin_or_resume(prepared, state, record, resumed)
            stack.enter_context(tracking(run.track, settings(prepared.run), out, state.step))
        state_of_ranks.broadcast(state, dist)
        fit(prepared.training, state, record)
        tell_movement(state, start, dist)
        finish(prepared, state, record)
        dist.barrier()  # when this returns, on any rank, everything is written
    return out


def new_state(prepared: Prepared) -> State:
    """The state before the first update."""
    models = prepared.training.models
    reference, run = models.reference.policy.module if models.reference else None, prepared.run
    trained = [model.weights for model in (models.policy, models.value) if model]
    learners = [Learner(weights, adamw(weights, run.optim, run.seed)) for weights in trained]
    return State(
        learners[0].weights,
        learners[0].optimizer,
        reference,
        oom=OomRetry(alone=not models.policy.weights.in_step),
        value=learners[1] if models.value else None,
        root=Path(run.out).expanduser() / CHECKPOINTS,
    )


def settings(run: Run) -> dict[str, object]:
    """What a tracker shows of a run: every key with its value."""
    return {key: value for key, value in flatten(tree_of(run)).items() if not key.startswith("track.")}


def tell_movement(state: State, start: Tensor, dist: Distributed) -> None:
    """Record what share of the weights training has changed. start: a sample of them, or of this rank's rows of them,
    from before the first update."""
    moved = state.weights.sampled() != start
    changed, sampled = dist.sum(torch.tensor([int(moved.sum()), moved.numel()])).tolist()
    share = changed / sampled
    events.emit(events.Happened(state.step, "weights_moved", f"{share:.2%} of the weights moved", {"share": share}))


def finish(prepared: Prepared, state: State, record: RecordWriter | None) -> None:
    """Export the model, of the best step where that is asked for, and write the page; what a run that was finished
    before has written already stays as it is.

    record: None on ranks other than the first, which give it their rows of weights that are cut among ranks.
    """
    if record is not None:
        record.sync()
    unfinished = record is not None and (folders.lacks_files(record.path / MODEL) or record.finished_at() != state.step)
    with signals.interruptible():
        load_best(prepared.training, state, record)
        if prepared.training.dist.broadcast_int(unfinished):
            events.emit(events.Note("writing the model and the page"))
            with ExitStack() as stack:
                for learner in state.learners.values():
                    stack.enter_context(learner.weights.whole())
                with prepared.training.dist.agreed():
                    if record is not None:
                        export(prepared, state, record.path)
        if record is None:
            return
        events.emit(events.Happened(state.step, "finished", f"finished after {state.step} steps"))
        report = record.path / REPORT
        if not report.exists():
            files.write(report, page([Record.open(record.path)]))


def export(prepared: Prepared, state: State, out: Path) -> None:
    """Write what was trained. Raises UserError where a number of it is not finite."""
    if broken := checkpoint.not_finite(state.weights.module.state_dict()):
        raise UserError(f"{broken} is not finite, so no model is exported.", location=str(out / MODEL), code=NON_FINITE)
    with folders.folder(out / MODEL) as folder:
        state.weights.export(folder, prepared.tokenizer)
    if state.value is not None:
        with folders.folder(out / "value") as folder:
            state.value.weights.export(folder, prepared.tokenizer)
    files.delete(out / REPORT)

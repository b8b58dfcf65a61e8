"""All of training: `fit` is the loop. What comes before and after it stands in run/train.py."""

from __future__ import annotations

from preftune import events, signals
from preftune.distributed import SINGLE_PROCESS
from preftune.errors import CORRUPT, IO, UserError
from preftune.evaluate.baseline import load_baseline, save_baseline
from preftune.evaluate.evaluate import evaluate
from preftune.forward.forward import dry_run
from preftune.pack.plan import Phase, Step
from preftune.record.writer import RecordWriter
from preftune.rollout.ask import NotScoredError
from preftune.training import checkpoint, state_of_ranks
from preftune.training.checkpoint import State
from preftune.training.update import Training, sync_pack_splits, update

RESIDUAL, RESIDUAL_HALF = 0.02, 4.0  # nats per response that a policy may be off its own copy


def fit(training: Training, state: State, record: RecordWriter | None) -> None:
    """Every step that is left. record: None on ranks other than the first.

    Evaluates and saves when due. A signal to stop takes effect between two packs, or with several ranks between two
    steps; the last update before it is saved, as it is where a reward fails.
    """
    saved, begun = state.step, False
    with signals.deferred(condition=training.dist.world_size > 1):
        try:
            for phase in training.source.phases(state.step):
                if not begun:
                    warm_up(training, state, phase)
                begun = True
                evaluate_if_due(training, state, record)
                for step in phase.after(state.step):
                    train_step(training, state, phase, step)
                    last, stop = state.step == training.source.steps, signals.agreed(training.dist)
                    if last or stop or is_due(training.save.every, state.step):
                        saved = save_checkpoint(training, state, record, must=bool(last or stop)) or saved
                    if stop:
                        raise signals.Stopped(stop)
                    evaluate_if_due(training, state, record)
        except (signals.Stopped, NotScoredError):
            if state.step > saved:
                save_checkpoint(training, state, record)
            raise


def train_step(training: Training, state: State, phase: Phase, step: Step) -> None:
    """One update, and what follows from it. A signal that ends it before the update leaves the state as it was."""
    metrics = update(training, state, phase, step)
    state.step += 1
    if training.models.reference is not None:
        training.models.reference.follow(training.models.policy, state.step)
    events.emit(events.StepDone(state.step, training.source.steps, metrics))


def is_due(every: int | None, step: int) -> bool:
    """Whether something that is done every so many steps is due after this one."""
    return bool(every) and step % every == 0


def warm_up(training: Training, state: State, phase: Phase) -> None:
    """Run the most expensive pack once, forward and back, so that most lack of memory shows before training.

    Before the first update a policy that equals its reference must have no margin there; the residual is recorded.
    """
    packs = [(pack, step) for step in phase.after(state.step) for pack in step.packs]
    if not packs:
        return
    splits = state.oom.splits
    pack, step = max(packs, key=lambda item: sum(training.packing.cost(phase.groups[i]) for i in item[0]))
    off = dry_run(training.models, phase.groups, step, pack, training.loss.reads, state.oom, training.dist)
    state.optimizer.zero_grad()
    sync_pack_splits(state, splits, phase.groups, [pack], training.dist)
    if state.step or not training.starts_at_reference:
        return
    text = f"policy and reference agree to {off:.1e} nats a response before the first update"
    events.emit(events.Happened(0, "start_check", text, {"residual": off}))
    bound = RESIDUAL_HALF if training.models.policy.half else RESIDUAL
    if off > bound:  # NaN is left to the updates, which name their rows
        raise UserError(
            f"the reference is {off:.3g} nats off the model it is a copy of.",
            location="reference",
            code=CORRUPT,
            hint="Delete its store and start again.",
        )


def evaluate_if_due(training: Training, state: State, record: RecordWriter | None) -> None:
    """Measure at the start, at the end and every so many steps, unless the record of a resumed run has done so."""
    due = state.step in (0, training.source.steps) or is_due(training.evaluate.every, state.step)
    if due and not training.dist.broadcast_int(record is not None and record.has_evaluated(state.step)):
        evaluate_held_out(training, state, record)


def evaluate_held_out(training: Training, state: State, record: RecordWriter | None) -> None:
    """Measure on the held-out rows, if there are any, and record the numbers."""
    held_out = training.held_out
    numbers = drawn_metrics(training, state)
    if not held_out.rows:
        if numbers:
            events.emit(events.Evaluated(state.step, {"step": state.step, **numbers}))
        return
    rows = held_out.groups[: held_out.rows]
    start = load_baseline(record.path, rows) if state.step and record is not None else None
    splits, loss = state.oom.splits, training.loss.with_ema(state.ema)
    evaluation = evaluate(training.models, loss, held_out, state.oom, training.dist, start)
    sync_pack_splits(state, splits, held_out.groups, held_out.step.packs, training.dist)
    if record is None:
        return
    if state.step == 0:
        save_baseline(record.path, evaluation.logp_table, rows)
    events.emit(events.Evaluated(state.step, {"step": state.step, **evaluation.metrics, **numbers}))
    record.rows("evaluation_rows.jsonl", evaluation.rows)
    record.rows("evaluation_words.jsonl", evaluation.words)


def drawn_metrics(training: Training, state: State) -> dict[str, float | None]:
    """What responses that are drawn to held-out prompts show."""
    metrics: dict[str, float | None] = {}
    if training.samples is not None and state.step == 0:
        metrics = training.samples.before()
    elif training.samples is not None and state.step == training.source.steps:
        metrics = training.samples.after(state.step)
    if training.tasks is not None:
        metrics |= training.tasks.evaluate(training.models, training.dist)
    return metrics


def save_checkpoint(training: Training, state: State, record: RecordWriter | None, *, must: bool = True) -> int:
    """Write a checkpoint, if all ranks have the same weights; returns its step. Ranks wait until it is on the disk.

    must: raise where the disk refuses it; otherwise the record says so, 0 is returned and training goes on, because the
    checkpoints of before are whole and the next one may succeed.
    """
    if state_of_ranks.has_drifted(state, training.dist):
        hint = "The machines compute different results; use identical hardware."
        raise UserError("the ranks no longer have the same weights.", hint=hint, code=CORRUPT)
    step, ranks = state.step, training.dist if state.weights.sharded else SINGLE_PROCESS
    if record is not None:
        record.sync()
    if record is not None or state.weights.sharded:
        try:
            checkpoint.save(state, state.root, training.save.keep, ranks)
        except UserError as error:
            if must or error.code != IO:
                raise
            events.emit(events.Happened(state.step, "save_failed", f"no checkpoint was saved here: {error}"))
            step = 0
    training.dist.barrier()
    return step

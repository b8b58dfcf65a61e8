"""All of training: `fit` is the loop. What comes before and after it stands in run/train.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from preftune import events, signals
from preftune.distributed import SINGLE_PROCESS
from preftune.errors import CORRUPT, IO, UserError
from preftune.evaluate.baseline import load_baseline, save_baseline
from preftune.evaluate.evaluate import Evaluation, evaluate
from preftune.forward.forward import dry_run
from preftune.pack.plan import Phase, Step
from preftune.record.replace import EVALUATIONS
from preftune.record.writer import RecordWriter
from preftune.rollout.ask import NotScoredError
from preftune.training import checkpoint, state_of_ranks
from preftune.training.best import Standing, agreed, best_saved
from preftune.training.checkpoint import State
from preftune.training.update import Training, sync_pack_splits, update

RESIDUAL, RESIDUAL_HALF = 0.02, 4.0  # nats per response that a policy may be off its own copy


def fit(training: Training, state: State, record: RecordWriter | None) -> None:
    """Every step that is left. record: None on ranks other than the first.

    Evaluates and saves when due, and ends where an evaluation says so. A signal to stop takes effect between two packs,
    or with several ranks between two steps; the last update before it is saved, as it is where a reward fails.
    """
    saved = state.step
    with signals.deferred(condition=training.dist.world_size > 1):
        try:
            # a resumed run may be at its end, and then draws no further phase
            _, over = evaluate_if_due(training, state, record) if state.step else Standing()
            for phase, step in () if over else steps_left(training, state, record):
                train_step(training, state, phase, step)
                last, stop = state.step == training.source.steps, signals.agreed(training.dist)
                if last or stop or is_due(training.save.every, state.step):
                    saved = save_checkpoint(training, state, record, must=bool(last or stop)) or saved
                if stop:
                    raise signals.Stopped(stop)
                better, over = evaluate_if_due(training, state, record)
                if (better or over) and saved < state.step:
                    saved = save_checkpoint(training, state, record)
                if over:
                    break
        except (signals.Stopped, NotScoredError):
            if state.step > saved:
                save_checkpoint(training, state, record)
            raise
    if over:
        text = f"stopped early at step {state.step} of {training.source.steps}: no better for " \
            f"{training.evaluate.patience} evaluations"  # fmt: skip
        events.emit(events.Happened(state.step, "stopped_early", text))


def steps_left(training: Training, state: State, record: RecordWriter | None) -> Iterator[tuple[Phase, Step]]:
    """The steps after those of the state, each with its phase; before the first, a warm-up and the first evaluation."""
    begun = False
    for phase in training.source.phases(state.step):
        if not begun:
            warm_up(training, state, phase)
            if not state.step:
                evaluate_if_due(training, state, record)
        begun = True
        for step in phase.after(state.step):
            yield phase, step


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


def evaluate_if_due(training: Training, state: State, record: RecordWriter | None) -> Standing:
    """Measure at the start, at the end and every so many steps, unless the record of a resumed run has done so. Returns
    what follows from the evaluation of this step."""
    due = state.step in (0, training.source.steps) or is_due(training.evaluate.every, state.step)
    if not due:
        return Standing()
    if not training.dist.broadcast_int(record is not None and record.has_evaluated(state.step)):
        evaluate_held_out(training, state, record)
    return agreed(training, state.step, [] if record is None else record.lines(EVALUATIONS))


def evaluate_held_out(training: Training, state: State, record: RecordWriter | None) -> None:
    """Measure on the held-out rows and prompts, if there are any, and record the numbers."""
    evaluation = evaluate_rows(training, state, record) if training.held_out.rows else None
    metrics = {} if evaluation is None else evaluation.metrics
    drawn = {} if training.tasks is None else training.tasks.evaluate(training.models, training.dist)
    metrics = {"step": state.step, **metrics, **samples_if_due(training, state, record, metrics | drawn), **drawn}
    if len(metrics) > 1:
        events.emit(events.Evaluated(state.step, metrics))
    if evaluation is not None and record is not None:
        record.rows("evaluation_rows.jsonl", evaluation.rows)
        record.rows("evaluation_words.jsonl", evaluation.words)


def evaluate_rows(training: Training, state: State, record: RecordWriter | None) -> Evaluation:
    """Measure on the held-out rows; at the start, all changes are counted from that."""
    held_out = training.held_out
    rows = held_out.groups[: held_out.rows]
    start = load_baseline(record.path, rows) if state.step and record is not None else None
    splits, loss = state.oom.splits, training.loss.with_ema(state.ema)
    evaluation = evaluate(training.models, loss, held_out, state.oom, training.dist, start)
    sync_pack_splits(state, splits, held_out.groups, held_out.step.packs, training.dist)
    if state.step == 0 and record is not None:
        save_baseline(record.path, evaluation.logp_table, rows)
    return evaluation


def samples_if_due(
    training: Training, state: State, record: RecordWriter | None, metrics: Mapping[str, float | None]
) -> dict[str, float | None]:
    """What texts show that are drawn before training, and after it, where it may be these metrics that end it."""
    if training.samples is None:
        return {}
    if state.step == 0:
        return training.samples.before()
    lines = [] if record is None else [*record.lines(EVALUATIONS), {"step": state.step, **metrics}]
    if state.step == training.source.steps or agreed(training, state.step, lines).over:
        return training.samples.after(state.step)
    return {}


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
            best = None if record is None else best_saved(training, record, state.step)
            checkpoint.save(state, state.root, training.save.keep, ranks, 0 if best is None else best.step)
        except UserError as error:
            if must or error.code != IO:
                raise
            events.emit(events.Happened(state.step, "save_failed", f"no checkpoint was saved here: {error}"))
            step = 0
    training.dist.barrier()
    return step

"""A run, from its configuration to its record. `learn` is the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import torch

from preftune import files
from preftune.config.resolve import resolve
from preftune.config.run import Run
from preftune.distributed import process_group
from preftune.errors import CORRUPT, NON_FINITE, UserError
from preftune.evaluate import baseline as begin
from preftune.evaluate.evaluate import HeldOut, evaluate
from preftune.evaluate.metrics import Sums, Values
from preftune.forward.forward import dry_run, passes
from preftune.forward.loss import score
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Pack, Step, halved
from preftune.record.schema import STEP
from preftune.record.show import Show, silent
from preftune.record.writer import Record, claim
from preftune.reference.reference import MovingReference
from preftune.run.dataset import Gather, gather
from preftune.run.prepare import Setup, set_up
from preftune.run.resume import begin_or_resume, with_recorded_budget
from preftune.signals import Stop, listening, stopped
from preftune.tokens.groups import TokenGroup
from preftune.training import checkpoint as checkpoints
from preftune.training.checkpoint import State
from preftune.training.optimizer import adamw, learning_rate

IN_A_ROW = 3  # updates that are not finite before a run gives up


def train(
    run: Run,
    *,
    resume: bool = False,
    force: bool = False,
    allow_change: Sequence[str] = (),
    show: Show = silent,
    gather: Gather = gather,
) -> Path:
    """Do a run and return the folder of its record.

    resume: go on with the run in the folder, to the same bits; allow_change: keys in which it may differ.
    force: replace a run that is there; gather: what reads and tokenizes. Raises UserError with the exit code as `code`.
    """
    if resume and force:
        raise UserError(
            "contradict each other.", location="--resume --force", hint="Go on with the run, or replace it."
        )
    run = resolve(run)
    out = Path(run.out).expanduser()
    with process_group() as dist, files.lock(out / ".lock") if dist.first else nullcontext(), listening() as stop:
        show = show if dist.first else silent
        resuming = bool(dist.broadcast_int(dist.first and claim(out, resume=resume, force=force)))
        if resuming:
            run = with_recorded_budget(run, out, dist)
        setup = set_up(run, show, stop, gather, dist)
        moving = setup.reference.policy.module if isinstance(setup.reference, MovingReference) else None
        state = State(setup.policy.module, adamw(setup.policy.module, run.optim), moving)
        with closing(Record(out, writing=dist.first)) as record:
            if dist.first:
                begin_or_resume(setup, state, record, allow_change if resuming else None, show)
            checkpoints.spread(state, dist)
            held_out = HeldOut.of(setup.prepared.evaluate, setup.engine)
            learn(setup, state, record, held_out, show, stop)
            if dist.first:
                _finish(setup, state, record, show)
            dist.max(0)  # when this returns, on any rank, everything is written
    return out


def learn(setup: Setup, state: State, record: Record, held_out: HeldOut, show: Show, stop: Stop) -> None:
    """Every step that is left. Evaluates and saves when due; a stop is heard between two steps."""
    run, steps = setup.run, setup.plan.steps
    stop.check()
    if state.step and held_out.groups and record.writing:
        begin.kept(record.path, held_out.groups)
    warm_up(setup, state, record)
    if state.step == 0:
        start_check(setup, state, record)
        measure(setup, state, record, held_out, show)
    for step in steps[state.step :]:
        numbers = update(setup, state, record, step)
        state.step += 1
        if isinstance(setup.reference, MovingReference):
            setup.reference.follow(setup.policy, state.step)
        record.metrics(numbers)
        show("training", state.step, len(steps), numbers)
        last = state.step == len(steps)
        if last or (run.evaluate.every and state.step % run.evaluate.every == 0):
            measure(setup, state, record, held_out, show)
        asked = stop.agreed(setup.dist)
        if last or asked or (run.save.every and state.step % run.save.every == 0):
            keep(setup, state, record)
        if asked:
            raise stopped(asked)


def keep(setup: Setup, state: State, record: Record) -> None:
    """Write a checkpoint, after a look at whether there is one state to write. Ranks wait until it is on the disk."""
    if checkpoints.drifted(state, setup.dist):
        hint = "Their machines compute unalike: use one kind."
        raise UserError("the ranks no longer have the same weights.", hint=hint, code=CORRUPT)
    if setup.dist.first:
        record.sync()
        checkpoints.save(state, record.checkpoints, setup.run.save.keep)
    setup.dist.max(0)


def update(setup: Setup, state: State, record: Record, step: Step) -> Values:
    """One update, or none where a number is not finite. Returns its meters (record.meters.STEP)."""
    began, run = time.monotonic(), setup.run
    rate = learning_rate(run.optim, state.step, len(setup.plan.steps))
    for part in state.optimizer.param_groups:
        part["lr"] = rate
    memory = OomRetry(state.splits)
    engine = setup.engine.with_ema(state.ema)
    done = passes(engine, setup.prepared.train, step, memory)
    sync_pack_splits(setup, state, record, memory, setup.prepared.train, step.packs)
    trained = list(state.trained().values())
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if norm > run.optim.clip:  # a factor of 1 would still pass over every gradient
        torch.nn.utils.clip_grads_with_norm_(trained, run.optim.clip, norm)
    views, value = done.judgement.views, done.judgement.value
    before = views.scores.reference if setup.same_start and state.follower is None else None
    sums = Sums(run.objective)
    sums.add(views, value, before, done.judgement.coefficients)
    numbers = sums.means(list(STEP))
    if math.isfinite(float(norm)) and math.isfinite(value):
        state.optimizer.step()
        state.skipped = 0
        state.ema = engine.judge.updated_ema(views)
    else:
        refuse(state, record, [g.id or str(g.place) for g in setup.groups(step)], float(norm), value)
    state.optimizer.zero_grad()
    return numbers | {
        "step": state.step + 1,
        "epoch": step.epoch,
        "grad_norm": float(norm),
        "lr": rate,
        "examples": step.rows,
        "tokens_computed": done.tokens,
        "tokens_shared": done.shared,
        "seconds": round(time.monotonic() - began, 4),
    }


def sync_pack_splits(
    setup: Setup, state: State, record: Record, memory: OomRetry, groups: Sequence[TokenGroup], packs: Sequence[Pack]
) -> None:
    """Where memory did not suffice for packs of these groups on some rank, packs are cut in two on all from then on."""
    before, state.splits = state.splits, setup.dist.max(memory.splits)
    if state.splits > before:
        longest = max(sum(groups[i].tokens for i in pack) for pack in halved(packs, before))
        text = f"out of memory with packs of up to {longest} tokens; packs are cut in two from here"
        record.event(state.step, "out_of_memory", text)


def warm_up(setup: Setup, state: State, record: Record) -> None:
    """Go through the costliest pack of the run once, on every rank, and forget it: want of memory shows now."""
    packs = [pack for step in setup.plan.steps[state.step :] for pack in step.packs]
    if packs:
        rows, memory = setup.prepared.train, OomRetry(state.splits)
        largest = max(packs, key=lambda pack: sum(setup.engine.packing.cost(rows[i]) for i in pack))
        dry_run(setup.engine, rows, largest, memory)
        state.optimizer.zero_grad()
        sync_pack_splits(setup, state, record, memory, rows, [largest])


def refuse(state: State, record: Record, ids: list[str], norm: float, value: float) -> None:
    """Write down an update that was not applied; stop after several in a row."""
    state.skipped += 1
    text = f"loss {value} and gradient norm {norm}: this update was not applied"
    record.event(state.step + 1, "non_finite", text, rows=ids)
    if state.skipped == IN_A_ROW:
        record.sync()
        raise UserError(
            f"{IN_A_ROW} updates in a row were not finite; the rows are in events.jsonl.",
            location=str(record.path),
            hint="Lower optim.lr, or look at these rows.",
            code=NON_FINITE,
        )


def start_check(setup: Setup, state: State, record: Record) -> None:
    """Before the first update a policy that equals its reference must have no margin; the residual is reported."""
    if not setup.same_start:
        return
    rows, packs = setup.prepared.train, setup.plan.steps[0].packs[:1]
    off = OomRetry(state.splits).run(rows, packs, lambda cut: max(_margin(setup, pack) for pack in cut))
    text = f"policy and reference agree to {off:.1e} nats a response before the first update"
    record.event(0, "start_check", text, residual=off)
    if not off <= (4.0 if setup.policy.half else 0.02):
        raise UserError(
            f"the reference is {off:.3g} nats off the model it is a copy of.",
            location="reference",
            code=CORRUPT,
            hint="Delete its store and start again.",
        )


def _margin(setup: Setup, pack: Pack) -> float:
    """Largest log-ratio of a pack of training rows, in nats, without its sign."""
    with torch.no_grad():
        scored = score(setup.engine, setup.engine.batch(setup.prepared.train, pack))
    return float(scored.scores.log_ratio.abs().max())


def measure(setup: Setup, state: State, record: Record, held_out: HeldOut, show: Show) -> None:
    """Evaluate on the held-out rows, if there are any, and write the numbers."""
    if not held_out.groups:
        return
    show("evaluating", 0, 0)
    before = begin.kept(record.path, held_out.groups) if state.step and record.writing else None
    memory = OomRetry(state.splits)
    found = evaluate(setup.engine.with_ema(state.ema), held_out, memory, before)
    sync_pack_splits(setup, state, record, memory, held_out.groups, held_out.step.packs)
    if state.step == 0 and record.writing:
        begin.keep(record.path, found.logp, held_out.groups)
    record.evaluation({"step": state.step, **found.values})
    record.rows("evaluation_rows.jsonl", found.rows)
    show("evaluated", 0, 0, {"step": state.step, **found.values})


def _finish(setup: Setup, state: State, record: Record, show: Show) -> None:
    """Export the model and write the page."""
    show("writing the model and the page")
    with files.folder(record.path / "model") as folder:
        setup.policy.weights.export(folder, setup.tokenizer)
    record.event(state.step, "finished", f"finished after {state.step} steps")
    from preftune.record.reader import Record as Written
    from preftune.report import page

    files.write(record.path / "report.html", page([Written.open(record.path)]))

"""The plan of a run, and the responses under other prompts that some objectives compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from preftune import signals
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.evaluate.evaluate import HeldOut
from preftune.events import Note, emit
from preftune.forward.examples import mismatch
from preftune.pack.plan import Packing, Plan, Step, make_plan, prefix_order
from preftune.run.match_rows import Notes
from preftune.tokens.groups import TokenGroup
from preftune.training.schedule import refuse_long_warmup


@signals.interruptible()
def plan_steps(run: Run, groups: Sequence[TokenGroup], packing: Packing, world_size: int = 1) -> Plan:
    """The run's plan over its rows, for so many ranks."""
    return make_plan(
        [group.tokens for group in groups],
        rows=run.batch.rows,
        tokens=packing.tokens,
        seed=run.seed,
        steps=run.optim.steps,
        epochs=run.optim.epochs,
        sort_key=prefix_order([group.prompt for group in groups]),
        costs=[packing.cost(group) for group in groups],
        world_size=world_size,
    )


def refuse_idle_keys(run: Run, steps: int) -> None:
    """Raise UserError where the number of updates leaves a key without effect: a warm-up too long for a highest rate,
    or evaluations too few for one of them to be better than the last."""
    refuse_long_warmup(run.optim, steps)
    before_last = (steps - 1) // (run.evaluate.every or steps)
    needed = {"save.best": int(run.save.best), "evaluate.patience": (run.evaluate.patience or -1) + 1}
    for key, evaluations in needed.items():
        if before_last < evaluations:
            text = f"it needs {evaluations} evaluations before the last of {steps} updates, and there are {before_last}"
            raise UserError(f"{text}, so the key has no effect.", location=key,
                            hint="Lower evaluate.every, or remove the key.")  # fmt: skip


def with_mismatched(
    groups: Sequence[TokenGroup], plan: Plan, packing: Packing, max_tokens: int, notes: Notes, world_size: int
) -> tuple[list[TokenGroup], Plan]:
    """The groups followed by every step's mismatched responses, and the plan whose steps know theirs.

    Raises UserError where no step has any; where some have none, a note says how many.
    """
    every, steps = list(groups), []
    for step in plan.steps:
        steps.append(_with_mismatched(every, step, packing, max_tokens, world_size))
    alone = sum(not step.mismatched.packs for step in steps if step.mismatched is not None)
    if alone == len(steps):
        raise UserError("no step has rows of two prompts, so the drift cannot be estimated.", location="batch.rows",
                        hint="Raise it; where all rows have one prompt, use another objective.")  # fmt: skip
    if alone:
        text = f"{alone} of {len(steps)} steps have rows of one prompt only; their drift is taken as 0"
        emit(Note(text))
        notes["drift"] = (text, {"steps": alone})
    return every, Plan(tuple(steps))


def held_out_step(
    rows: Sequence[TokenGroup], packing: Packing, max_tokens: int, *, mismatched: bool, world_size: int
) -> HeldOut:
    """Rows to measure on, all in one step."""
    every, step = list(rows), packing.step(rows, world_size)
    if mismatched:
        step = _with_mismatched(every, step, packing, max_tokens, world_size)
    return HeldOut(every, len(rows), step)


def _with_mismatched(groups: list[TokenGroup], step: Step, packing: Packing, max_tokens: int, world_size: int) -> Step:
    """The step with its mismatched responses, which are added to the groups."""
    first, extra = len(groups), mismatch([groups[i] for i in step.order], max_tokens)
    groups += extra
    packed = packing.step(extra, world_size)
    packs = tuple(tuple(first + i for i in pack) for pack in packed.packs)
    return replace(step, mismatched=replace(packed, packs=packs))

"""One update: the gradient of a step, clipped, and AdamW. Held by tests/numbers/test_step.py."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from preftune import events
from preftune.distributed import Distributed
from preftune.errors import NON_FINITE, UserError
from preftune.evaluate.config import Evaluate
from preftune.evaluate.evaluate import HeldOut
from preftune.evaluate.metrics import Metrics, score_metrics
from preftune.forward.forward import Models, step_gradient, value_gradient
from preftune.forward.loss import Loss
from preftune.model.weights import local
from preftune.pack.plan import Pack, Packing, Phase, Step, halved
from preftune.record.schema import STEP
from preftune.rollout.evaluate import HeldOutTasks
from preftune.rollout.samples import Samples
from preftune.tokens.groups import TokenGroup
from preftune.training.checkpoint import State
from preftune.training.config import Optim, Save
from preftune.training.learner import Learner
from preftune.training.schedule import learning_rate
from preftune.training.source import Source

IN_A_ROW = 3  # updates that are not finite before a run gives up


@dataclass(frozen=True)
class Training:
    """What stays the same during training; what changes is `State`.

    packing: how groups become packs, for their cost; starts_at_reference: the reference is the model that training
    begins from; value_lr: highest learning rate of a value model; tasks: what held-out responses are drawn to; samples:
    what texts are drawn to.
    """

    models: Models
    loss: Loss
    source: Source
    packing: Packing
    held_out: HeldOut
    optim: Optim
    evaluate: Evaluate
    save: Save
    starts_at_reference: bool
    dist: Distributed
    value_lr: float = 0.0
    tasks: HeldOutTasks | None = None
    samples: Samples | None = None


def update(training: Training, state: State, phase: Phase, step: Step) -> Metrics:
    """One update, or none where a number is not finite. Returns its metrics (record.schema.STEP)."""
    began, optim, dist = time.monotonic(), training.optim, training.dist
    rate = learning_rate(optim, state.step, training.source.steps)
    splits, loss = state.oom.splits, training.loss.with_ema(state.ema)
    gradient = step_gradient(training.models, phase.groups, step, loss, state.oom, dist)
    sync_pack_splits(state, splits, phase.groups, step.packs, dist)
    output, norms = gradient.output, {"": clipped_norm(state.learners[""], optim.clip, dist)}
    start_is_known = training.starts_at_reference and training.models.reference is None
    start = output.examples.responses.reference if start_is_known else None
    metrics = score_metrics(
        loss.objective, output.examples, list(STEP), loss=output.value / step.rows, start=start, d_logp=output.d_logp
    )
    if state.value is not None:
        metrics["value_loss"] = value_gradient(training.models, loss, phase.groups, step, state.oom, dist)
        norms["value_"] = clipped_norm(state.value, optim.clip, dist)
    if all(map(math.isfinite, (*norms.values(), output.value))):
        for begin, learner in state.learners.items():
            if begin or phase.policy_learns:
                take_step(learner, rate * (training.value_lr / optim.rate if begin else 1.0), dist)
        assert_finite(state, dist)
        state.skipped = 0
        state.ema = loss.updated_ema(output.examples)
    else:
        skip_update(state, output.examples.groups, max(norms.values()), output.value)
    for learner in state.learners.values():
        learner.optimizer.zero_grad()
    return metrics | {
        "step": state.step + 1,
        "epoch": step.epoch,
        "grad_norm": norms[""],
        "lr": rate,
        "examples": step.rows,
        "tokens_computed": gradient.tokens,
        "tokens_shared": gradient.shared,
        "seconds": round(time.monotonic() - began, 4),
    }


def clipped_norm(learner: Learner, clip: float, dist: Distributed) -> float:
    """The norm of a gradient, of all ranks' rows where it is cut, which is then scaled to at most `clip`."""
    gradients = [local(p.grad) for p in learner.weights.trained().values() if p.grad is not None]
    norms = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    if learner.weights.sharded:
        norm = dist.sum(norm.double().cpu().square()).sqrt().to(norm)
    if norm > clip:  # a factor of 1 would still pass over every gradient
        for gradient in gradients:
            gradient.mul_((clip / (norm + 1e-6)).to(gradient))
    return float(norm)


def take_step(learner: Learner, rate: float, dist: Distributed) -> None:
    """One step of AdamW at this rate, times each group's; then every rank has the weights that it computes with."""
    for group in learner.optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    learner.optimizer.step()
    learner.weights.share(dist)


def sync_pack_splits(
    state: State, before: int, groups: Sequence[TokenGroup], packs: Sequence[Pack], dist: Distributed
) -> None:
    """If any rank ran out of memory on packs of these groups, every rank halves its packs from now on.

    before: how often packs were halved when they were begun.
    """
    state.oom.splits = dist.max(state.oom.splits)
    if state.oom.splits > before:
        longest = max(sum(groups[i].tokens for i in pack) for pack in halved(packs, before))
        text = f"out of memory with packs of up to {longest} tokens; packs are cut in two from here"
        events.emit(events.Happened(state.step, "out_of_memory", text))


def assert_finite(state: State, dist: Distributed) -> None:
    """Raise UserError where an update has left a weight that is not finite; no checkpoint is written of it.

    The moments are finite where the gradient's norm is, which is a sum of the squares that they average.
    """
    trained = [local(p.detach()) for learner in state.learners.values() for p in learner.weights.trained().values()]
    finite = math.isfinite(float(torch.nn.utils.get_total_norm([p for p in trained if p.numel()], float("inf"))))
    if not (dist.max(int(not finite)) if state.weights.sharded else not finite):
        return
    text = "this update left weights that are not finite"
    events.emit(events.Happened(state.step + 1, "non_finite", text))
    hint = "The checkpoints of before are kept. Lower optim.lr or optim.weight_decay, or raise optim.eps."
    raise UserError(f"update {state.step + 1} left weights that are not finite.", hint=hint, code=NON_FINITE)


def skip_update(state: State, groups: Sequence[TokenGroup], norm: float, value: float) -> None:
    """Record an update that was not applied. Raises UserError after several in a row."""
    state.skipped += 1
    text = f"loss {value} and gradient norm {norm}: this update was not applied"
    rows = [group.id or str(group.place) for group in groups]
    events.emit(events.Happened(state.step + 1, "non_finite", text, {"rows": rows}))
    if state.skipped == IN_A_ROW:
        raise UserError(
            f"{IN_A_ROW} updates in a row were not finite; the rows are in events.jsonl.",
            hint="Lower optim.lr, or look at these rows.",
            code=NON_FINITE,
        )

"""Everything that a run needs before its first step: read, loaded, checked, planned, and scored by the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from transformers import PreTrainedTokenizerBase

from preftune import signals
from preftune.config.resolve import with_rounding
from preftune.config.run import Run
from preftune.distributed import SINGLE_PROCESS, Distributed
from preftune.errors import UserError
from preftune.evaluate.evaluate import HeldOut
from preftune.events import Note, emit
from preftune.forward.forward import Models
from preftune.forward.loss import Loss
from preftune.model.budget import attention_crossover, pack_budget, positions
from preftune.model.heads import LanguageHead
from preftune.model.memory import Shard
from preftune.model.policy import Policy
from preftune.objective import of_scores
from preftune.pack.plan import Packing, Phase
from preftune.rollout.samples import Samples, end_tokens_of, samples_of
from preftune.run.dataset import Dataset, Loader, load_dataset
from preftune.run.fits import needs_of
from preftune.run.identity import Resumed, assert_same_run, identity
from preftune.run.match_rows import Notes, match_rows
from preftune.run.models import device_of, load_policy, refuse_untrainable, with_precision
from preftune.run.plan_steps import held_out_step, plan_steps, refuse_idle_keys, with_mismatched
from preftune.run.reference_model import fill_reference, load_reference_model, moving_reference, start_model
from preftune.run.shards import choose_shard, divided
from preftune.tokens.groups import TokenGroup
from preftune.training.source import Offline
from preftune.training.update import Training


@dataclass(frozen=True)
class Prepared:
    """run: with every open key filled in; digests: of all that decides the result; notes: events to record."""

    run: Run
    training: Training
    dataset: Dataset
    digests: Mapping[str, str]
    notes: Notes

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.dataset.tokenizer


def prepare(
    run: Run, dist: Distributed = SINGLE_PROCESS, load: Loader = load_dataset, resumed: Resumed | None = None
) -> Prepared:
    """Read, load, check, plan and score by the reference; returns what `fit` and the record need.

    Raises UserError where rows, model and objective do not go together, or this is another run than the one resumed.
    """
    refuse_untrainable(run)
    run, dataset, notes = _matched(run, load, full_batch=False)
    run = with_rounding(with_precision(run, device_of(run, dist.local)))
    run, policy, shard, packing = load_fitting(run, dataset, notes, dist)
    loss = Loss(run.objective, run.data.rankings)
    plan, groups = plan_steps(run, dataset.train, packing, dist.world_size), dataset.train
    mismatched = "mismatched" in loss.reads
    if mismatched:
        groups, plan = with_mismatched(groups, plan, packing, dataset.max_tokens, notes, dist.world_size)
    held_out = held_out_step(
        dataset.held_out, packing, dataset.max_tokens, mismatched=mismatched, world_size=dist.world_size
    )
    refuse_idle_keys(run, len(plan.steps))
    reference, digests = _reference(run, dataset, policy, dist)
    assert_same_run(identity(run, digests), dist, resumed)  # before the reference scores, which may take hours
    used = sorted({i for step in plan.steps for part in (step, step.mismatched) if part for i in part.order})
    needed = [*(groups[i] for i in used), *held_out.groups]  # a short run needs few of its rows
    filled = fill_reference(run, reference, digests.get("reference", ""), needed, notes, dist)
    train, evaluated = filled[: len(used)], filled[len(used) :]
    by_index = dict(zip(used, train, strict=True))
    phase = Phase([by_index.get(i, group) for i, group in enumerate(groups)], plan)
    policy = divided(policy, shard)
    training = Training(
        models=Models(policy, moving_reference(run, reference)),
        loss=loss,
        source=Offline(phase),
        packing=packing,
        held_out=HeldOut(evaluated, held_out.rows, held_out.step, spell=dataset.tokenizer.decode),
        optim=run.optim,
        evaluate=run.evaluate,
        save=run.save,
        starts_at_reference=digests.get("reference") == digests["model"],
        dist=dist,
        samples=samples_to(run, policy, dataset, held_out.groups[: held_out.rows], packing, dist),
    )
    return Prepared(run, training, dataset, digests, notes)


def prepare_scoring(run: Run, dist: Distributed = SINGLE_PROCESS, start: str = "") -> tuple[Run, Models, Loss, HeldOut]:
    """Prepare to score all rows of data.train as one step; the run has its open keys filled in. An objective of scores
    asks about rows of every kind. start: the digest that the reference has to have. Raises UserError."""
    run = with_precision(run, device_of(run, dist.local))
    if of_scores(run.objective):
        dataset, notes = load_dataset(run), {}
        if tasks := [group for group in dataset.train if not group.responses]:
            raise UserError(f"{len(tasks)} rows have no response that could be scored.", location=str(tasks[0].place),
                            hint="preftune draw writes responses to prompts.")  # fmt: skip
        groups = [replace(group, columns={}) for group in dataset.train]
        dataset = replace(dataset, train=groups)
        emit(Note("loading the model"))
    else:
        run, dataset, notes = _matched(run, load_dataset, full_batch=True)
    if run.adapter is not None and run.adapter.path is None:
        run = replace(run, adapter=None)  # as it begins it changes nothing
    run, policy, _, packing = load_fitting(run, dataset, notes, dist, trains=False)
    loss = Loss(run.objective, run.data.rankings)
    rows = held_out_step(
        dataset.train, packing, dataset.max_tokens, mismatched="mismatched" in loss.reads, world_size=dist.world_size
    )
    reference, digests = _reference(run, dataset, policy, dist)
    if start and digests.get("reference") != start:
        hint = "Another model has its name now. Name the right one by reference.path."
        raise UserError("is not the model that the run began from.", location="reference.path", hint=hint)
    assert_same_run(identity(run, digests), dist)
    groups = fill_reference(run, reference, digests.get("reference", ""), rows.groups, notes, dist)
    return run, Models(policy, moving_reference(run, reference)), loss, HeldOut(groups, rows.rows, rows.step)


def samples_to(
    run: Run, policy: Policy, dataset: Dataset, groups: Sequence[TokenGroup], packing: Packing, dist: Distributed
) -> Samples | None:
    """The held-out prompts to which texts are drawn; None where there are none, the model has no logits, or no rank has
    it whole."""
    if not isinstance(policy.head, LanguageHead) or policy.weights.in_step:
        return None

    def spell(ids: np.ndarray) -> str:
        return str(dataset.tokenizer.decode(ids, skip_special_tokens=True))

    end = dataset.tokenizer.get_vocab().get(str(dataset.tokenizer.eos_token))
    control = [id_ for id_, token in dataset.tokenizer.added_tokens_decoder.items() if token.special]
    ends, most = end_tokens_of(groups, control, end), positions(dataset.config)
    return samples_of(
        groups, run.evaluate.samples, policy, lambda: start_model(run, policy), spell, ends, packing, most, run.seed,
        Path(run.out).expanduser(), dist,
    )  # fmt: skip


@signals.interruptible()
def _matched(run: Run, load: Loader, *, full_batch: bool) -> tuple[Run, Dataset, Notes]:
    """The rows, matched with the objective; the person reads what is odd about them."""
    run, dataset, notes = match_rows(run, load(run), full_batch=full_batch)
    for text, _ in notes.values():
        emit(Note(text))
    emit(Note("loading the model"))
    return run, dataset, notes


def load_fitting(
    run: Run, dataset: Dataset, notes: Notes, dist: Distributed, *, trains: bool = True
) -> tuple[Run, Policy, Shard, Packing]:
    """The policy, tried; what ranks divide of it, which fits their memory; and the run and its packing with the tokens
    of a pack, which are the fewest that any rank has memory for. trains: or else it is only asked."""
    device = device_of(run, dist.local)
    shapes, setup = needs_of(run, dataset.config, device.type, trains=trains)
    shard = choose_shard(run, shapes, setup, device, notes, dist)
    policy = load_policy(run, dataset, notes, dist, fresh=trains, shard=shard)
    setup = changed(setup, shard=shard, gpus=dist.world_size)
    tokens = -dist.max(-(run.batch.tokens or pack_budget(policy.module, shapes, setup)))
    run = replace(run, batch=replace(run.batch, tokens=tokens))
    return run, policy, shard, Packing(tokens, attention_crossover(policy.module.config))


@signals.interruptible()
def _reference(run: Run, dataset: Dataset, policy: Policy, dist: Distributed) -> tuple[Policy | None, dict[str, str]]:
    """The reference's model, if there is one, and the digests of all that decides the result."""
    digests = {**dataset.digests, "model": policy.weights.digest()}
    groups = [*dataset.train, *dataset.held_out]
    reference = load_reference_model(run, policy, groups, dataset.tokenizer, dist)
    if reference is not None:
        digests["reference"] = digests["model"] if reference is policy else reference.weights.digest()
    return reference, digests

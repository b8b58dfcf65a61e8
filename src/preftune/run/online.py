"""The counterpart of prepare.py for a run that draws its own responses; it differs in where groups come from alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace as changed
from pathlib import Path
from typing import NamedTuple

import torch
from msgspec.structs import replace

from preftune import signals
from preftune.config.resolve import with_rounding
from preftune.config.run import Run, reward_tables, scoring_tables
from preftune.distributed import Distributed
from preftune.errors import UserError, without_effect
from preftune.evaluate.evaluate import HeldOut
from preftune.events import Note, emit
from preftune.forward.forward import Models
from preftune.forward.loss import Loss
from preftune.model.adapter_files import tokenizer_source
from preftune.model.budget import pack_budget, positions
from preftune.model.heads import LanguageHead
from preftune.model.policy import Policy
from preftune.model.quantized import QUANTIZED
from preftune.model.scalar import load_reward_model, model_scores
from preftune.model.shapes import shapes_of
from preftune.model.verify import sample, verify_layout
from preftune.objective import PPO
from preftune.pack.plan import Packing, Plan, Step, make_plan
from preftune.rollout.config import Reward, Rollout, Value
from preftune.rollout.embedded import Embedded
from preftune.rollout.functions import Function, functions_of
from preftune.rollout.judges import PairwiseJudge, judge_of
from preftune.rollout.phase import Online, weights_now
from preftune.rollout.reward_model import ModelScorer, recorded_slope
from preftune.rollout.scorers import SummedScorer, scorer_of
from preftune.run.fits import Learned, setup_of
from preftune.run.identity import Resumed, assert_same_run, identity, not_by_default
from preftune.run.match_rows import Notes
from preftune.run.measured import held_out_tasks, samples_of_tasks
from preftune.run.models import device_of, refuse_untrainable, stands_on_base, with_precision
from preftune.run.plan_steps import refuse_idle_keys
from preftune.run.prepare import Prepared, load_fitting
from preftune.run.reference_model import load_reference_model, moving_reference
from preftune.run.served import served
from preftune.run.shards import divided
from preftune.run.tasks import TaskSet, load_tasks
from preftune.run.value_model import load_value_model
from preftune.tokens.tokenizer import load_tokenizer, tokenizer_digest
from preftune.training.update import Training

DRAWN_BY = ("data.", "model", "reference", "reward", "rollout.", "seed", "tokenizer", "value")  # keys and digests


class Loaded(NamedTuple):
    """run: with its open keys filled in; anchor: the reference's model, asked after updates too; digests: of models."""

    run: Run
    models: Models
    anchor: Policy | None
    packing: Packing
    digests: dict[str, str]


def prepare_online(run: Run, dist: Distributed, resumed: Resumed | None = None) -> Prepared:
    """Read, load and check. Raises UserError where these do not go together, or are not the run that is resumed."""
    assert run.rollout is not None
    refuse_untrainable(run)
    rollout = replace(run.rollout, tasks=run.rollout.phase_tasks)
    run = with_rounding(with_precision(run, device := device_of(run, dist.local)))
    run = replace(run, rollout=rollout, objective=run.objective.with_data_defaults(1.0, 1.0))
    functions = functions_of(scoring_tables(run))
    tasks, notes = load_tasks(run, rollout, functions=functions), Notes()
    if run.objective.variant:
        notes["objective"] = (run.objective.variant, {})
    digests = dict(tasks.dataset.digests)
    on_base = any(stands_on_base(run, each.model, "reward.model") for each in scoring_tables(run) if each.model)
    scoring = None if on_base else scorer_and_judge(run, tasks, functions, device, digests, notes)  # what fails early
    run, models, anchor, packing, digests_of_models = _load(run, rollout.temperature, tasks, notes, dist)
    scorer, judge = scoring or scorer_and_judge(run, tasks, functions, device, digests, notes, models.policy)
    digests |= digests_of_models
    decides = identity(run, digests)
    assert_same_run(decides, dist, resumed)
    embedded = Embedded(models.policy, rollout.max_tokens, tasks.end_tokens)
    sampler = embedded if rollout.server is None else served(run, rollout.server, tasks, embedded)
    starts_at_reference = digests.get("reference") == digests["model"]
    source = Online(
        tasks=tasks.train,
        plan=plan_tasks(run, rollout, len(tasks.train)),
        rows=min(run.batch.rows, rollout.phase_tasks),
        limit=run.optim.steps,
        rollout=rollout,
        seed=run.seed,
        objective=run.objective,
        models=models,
        anchor=anchor if models.reference is None else None,
        sampler=sampler,
        scorer=scorer,
        judge=judge,
        tokenizer=tasks.dataset.tokenizer,
        packing=packing,
        record=Path(run.out).expanduser(),
        dist=dist,
        context=json.dumps({key: value for key, value in not_by_default(decides).items() if key.startswith(DRAWN_BY)}),
        warm_up=(run.value or Value()).warm_up if models.value is not None else 0,
        start=weights_now(models) if starts_at_reference and models.value is None else b"",
    )
    refuse_idle_keys(run, source.steps)
    training = _training(run, tasks, source, embedded, notes, starts_at_reference=starts_at_reference)
    for text, _ in notes.values():
        emit(Note(text))
    return Prepared(run, training, tasks.dataset, digests, notes)


@signals.interruptible()
def _load(run: Run, temperature: float, tasks: TaskSet, notes: Notes, dist: Distributed) -> Loaded:
    """The models of the run, each tried before it is believed."""
    emit(Note("loading the model"))
    run, policy, shard, packing = load_fitting(run, tasks.dataset, notes, dist)
    digests = {"model": policy.weights.digest()}
    anchor = load_reference_model(run, policy, tasks.dataset.train, tasks.dataset.tokenizer, dist, copied=True)
    if anchor is not None:
        digests["reference"] = anchor.weights.digest()
        anchor = at_temperature(anchor, temperature)
    value = load_value_model(run, policy, tasks, notes) if isinstance(run.objective, PPO) else None
    if value is not None:
        digests["value"] = value.weights.digest()
    policy = at_temperature(divided(policy, shard), temperature)
    models = Models(policy, moving_reference(run, anchor), value and divided(value, shard))
    return Loaded(run, models, anchor, packing, digests)


def _training(
    run: Run, tasks: TaskSet, source: Online, sampler: Embedded, notes: Notes, *, starts_at_reference: bool
) -> Training:
    """The pieces of the loop. sampler: draws to held-out prompts, in this process."""
    return Training(
        models=source.models,
        loss=Loss(run.objective, run.data.rankings),
        source=source,
        packing=source.packing,
        held_out=HeldOut((), 0, Step(())),
        optim=run.optim,
        evaluate=run.evaluate,
        save=run.save,
        starts_at_reference=starts_at_reference,
        dist=source.dist,
        value_lr=(run.value or Value()).lr,
        tasks=held_out_tasks(run, tasks, source, sampler, notes),
        samples=samples_of_tasks(run, tasks, sampler, source, starts_at_reference=starts_at_reference),
    )


def plan_tasks(run: Run, rollout: Rollout, tasks: int) -> Plan:
    """Which tasks each phase draws to; where updates are limited, phases enough for them. Raises UserError where no
    prompt is left to be drawn to in the place of another, and the run asks for that."""
    if rollout.redraws and rollout.phase_tasks >= tasks:
        raise without_effect(f"a phase draws to all {tasks} prompts", "rollout.redraws", "Lower rollout.tasks.")
    return make_plan([1] * tasks, rows=rollout.phase_tasks, tokens=tasks, seed=run.seed, steps=run.optim.steps,
                     epochs=run.optim.epochs)  # fmt: skip


def at_temperature(policy: Policy, temperature: float) -> Policy:
    """The policy whose log-probabilities are those of a distribution at this temperature, from which is drawn."""
    head = policy.head
    assert isinstance(head, LanguageHead)
    if temperature == 1:
        return policy
    if head.softcap is not None:
        raise UserError("this model caps its logits, so they cannot be divided by a temperature.",
                        location="rollout.temperature", hint="Use 1.")  # fmt: skip
    return changed(policy, head=changed(head, scale=head.scale / temperature))


@signals.interruptible()
def scorer_and_judge(
    run: Run, tasks: TaskSet, functions: Sequence[Function | None], device: torch.device, digests: dict[str, str],
    notes: Notes, policy: Policy | None = None,
) -> tuple[SummedScorer, PairwiseJudge | None]:  # fmt: skip
    """What scores the run's responses, or judges them two by two; digests and notes of it are added. functions: those
    of the tables that score; policy: on whose base a reward model may stand."""

    def load_model(reward: Reward) -> ModelScorer:
        assert reward.model is not None
        emit(Note("loading the reward model"))
        if policy is not None and stands_on_base(run, reward.model, "reward.model"):
            from preftune.run.adapt import reward_on_base  # peft is imported where it is needed

            model = reward_on_base(run, policy, reward.model)
            notes["reward_model"] = ("the reward model is an adapter on the policy's base in memory", {})
        else:
            weights = run.model.compute if run.model.weights in QUANTIZED else run.model.weights
            model = load_reward_model(reward.model, weights=weights, compute=run.model.compute,
                                      device=device, layout=run.model.layout)  # fmt: skip
        tokenizer = load_tokenizer(tokenizer_source(reward.model, None))
        if tokenizer_digest(tokenizer) == tasks.dataset.digests["tokenizer"]:
            rows = tasks.dataset.train
            model, _ = verify_layout(model, sample(rows, model), fall_back=run.model.layout == "auto")
        digests[f"reward.model {reward.name}"] = model.weights.digest()
        slope = recorded_slope(Path(reward.model).expanduser())
        if slope is not None and abs(slope.value - 1) > slope.half_width():  # else it may as well be right
            text = f"the reward model's held-out slope is {slope.value:.2f} ± {slope.half_width():.2f}"
            notes["reward_slope"] = (f"{text}: beta acts as if it were multiplied by it", {"slope": slope.value})
        setup = setup_of(run, 0, model.device.type, Learned(0))
        budget = run.batch.tokens or pack_budget(model.module, shapes_of(model.module), setup)
        return ModelScorer(lambda groups: model_scores(model, groups, budget), tasks.dataset.tokenizer, tokenizer,
                           positions(model.module.config))  # fmt: skip

    judges = [reward for reward in reward_tables(run) if reward.judge]
    scorer = scorer_of(scoring_tables(run), load_model, functions, run.rollout.max_tokens if run.rollout else 0)
    scorer.refuse_tasks([*tasks.train, *tasks.held_out])
    digests |= scorer.digests
    if scorer.remarks:
        notes["source_unseen"] = ("; ".join(scorer.remarks), {})
    if not judges:
        return scorer, None
    judge, digests_of_judge = judge_of(judges[0])
    digests |= digests_of_judge
    return scorer, judge

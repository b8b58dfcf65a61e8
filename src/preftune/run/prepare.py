"""Everything a run needs before its first step: checked, loaded, scored by the reference, planned."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from transformers import PreTrainedTokenizerBase

from preftune.config.run import Run
from preftune.distributed import SINGLE_PROCESS, Distributed
from preftune.errors import UserError
from preftune.forward.loss import Loss, Models
from preftune.model import load
from preftune.model.budget import attention_crossover, pack_budget
from preftune.model.policy import Policy, trainable, wrap
from preftune.model.verify import sample, verify_layout
from preftune.pack.plan import Packing, Plan, Step, make_plan, prefix_order
from preftune.record.show import Show
from preftune.reference import reference as anchors
from preftune.reference.config import Frozen, Moving, Stored
from preftune.reference.store import Store
from preftune.run.dataset import Gather, gather
from preftune.run.identity import assert_same_on_all_ranks, identity
from preftune.run.match_rows import Notes, fit
from preftune.run.prepare_rows import Prepared
from preftune.signals import Stop
from preftune.tokens.groups import TokenGroup


@dataclass(frozen=True)
class Setup:
    """run: with every key that was open filled in. same_start: the reference is the model that training begins from."""

    run: Run
    engine: Models
    tokenizer: PreTrainedTokenizerBase
    same_start: bool
    prepared: Prepared
    plan: Plan
    digests: dict[str, str]
    notes: Notes

    @property
    def policy(self) -> Policy:
        return self.engine.policy

    @property
    def reference(self) -> anchors.Reference:
        return self.engine.reference

    @property
    def dist(self) -> Distributed:
        return self.engine.dist

    def groups(self, step: Step) -> list[TokenGroup]:
        """All rows of a step."""
        return [self.prepared.train[i] for i in step.order]


def device_of(run: Run, local: int = 0) -> torch.device:
    """The device of the run; local: which of its kind, on this machine. Raises UserError where it is not there."""
    if run.device == "cpu" or (run.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("there is no CUDA device here.", location="device", hint='Use device = "auto".')
    if local >= torch.cuda.device_count():
        raise UserError(f"there is no GPU for rank {local} of this machine.", hint="Start one a GPU.")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def set_up(
    run: Run,
    show: Show,
    stop: Stop,
    gather: Gather = gather,
    dist: Distributed = SINGLE_PROCESS,
    *,
    as_one: bool = False,
) -> Setup:
    """Read, tokenize, load, check, score the reference and plan; as_one: the rows will be judged all together and not
    step by step. Raises UserError."""
    material = gather(run, show)
    run, prepared, notes = fit(run, material.prepared, whole=as_one)
    for sentence, _ in notes.values():
        show(sentence)
    show("loading the model")
    device = device_of(run, dist.local)
    module = load.load_model(
        run.model.path, revision=run.model.revision, weights=run.model.weights, device=device, location="model.path"
    )
    policy, layout = wrap(module, run.model.layout, load.DTYPES[run.model.compute])
    in_vocabulary(policy.vocab, prepared)
    wrapped, fall_back = policy.layout, run.model.layout == "auto"
    policy, off = verify_layout(policy, sample(prepared.train, policy), fall_back=fall_back)
    if policy.layout != wrapped:
        layout = "one padded row a response, because sharing prefixes changes what this model says"
    policy = trainable(policy, checkpointing=run.model.checkpointing)
    budget = -dist.max(-(run.batch.tokens or pack_budget(module, device, run.model.checkpointing)))
    run = msgspec.structs.replace(run, batch=msgspec.structs.replace(run.batch, tokens=budget))
    packing = Packing(budget, attention_crossover(module.config))
    plan = plan_of(run, prepared.train, packing, dist.world_size)
    judge = Loss(run.objective, run.data.rankings, prepared.account["max_tokens"])
    digests = {**material.digests, "model": policy.weights.digest()}
    anchor = anchor_model(run, policy, prepared.train)
    if anchor is not None:
        digests["reference"] = digests["model"] if anchor is policy else anchor.weights.digest()
    assert_same_on_all_ranks(identity(run, digests), dist)
    if as_one:
        groups = [*prepared.train, *judge.extra(prepared.train)]
    else:
        used = sorted({i for step in plan.steps for i in step.order})  # a short run needs few of them
        groups = [*(prepared.train[i] for i in used), *prepared.evaluate]
        groups += mismatched(judge, prepared, plan, notes, show)
    reference, pass_note = anchored(run, anchor, digests, groups, show, stop, dist)
    text = f"layout {policy.layout}: {layout}; {off:.1e} nats a token off plain forward passes"
    notes["layout"] = (f"{text}, rounding may give {policy.noise:.1e}", {"layout": policy.layout, "off": off})
    if pass_note:
        notes["reference"] = pass_note
    same = digests.get("reference") == digests["model"]
    engine = Models(policy, reference, judge, packing, dist)
    return Setup(run, engine, material.tokenizer, same, prepared, plan, digests, notes)


def mismatched(judge: Loss, prepared: Prepared, plan: Plan, notes: Notes, show: Show) -> list[TokenGroup]:
    """The mismatched responses of all steps and of the held-out rows, where the objective asks for them.

    Raises UserError where no step has any; where some have none, a note says how many.
    """
    if "mismatched" not in judge.needs:
        return []
    found = [judge.extra([prepared.train[i] for i in step.order]) for step in plan.steps]
    alone = sum(not extra for extra in found)
    if alone == len(found):
        raise UserError("no step has rows of two prompts, so the drift cannot be estimated.", location="batch.rows",
                        hint="Raise it; where all rows have one prompt, use another objective.")  # fmt: skip
    if alone:
        text = f"{alone} of {len(found)} steps have rows of one prompt only; their drift is taken as 0"
        show(text)
        notes["drift"] = (text, {"steps": alone})
    return [group for extra in (*found, judge.extra(prepared.evaluate)) for group in extra]


def plan_of(run: Run, groups: Sequence[TokenGroup], packing: Packing, dist: int = 1) -> Plan:
    """The run's plan with its rows so packed, for so many ranks."""
    optim = run.optim
    return make_plan(
        [g.tokens for g in groups],
        rows=run.batch.rows,
        tokens=packing.tokens,
        seed=run.seed,
        steps=optim.steps,
        epochs=optim.epochs,
        sort_key=prefix_order([g.prompt for g in groups]),
        costs=[packing.cost(g) for g in groups],
        world_size=dist,
    )


def in_vocabulary(known: int, prepared: Prepared) -> None:
    """Raise UserError where a row has a token beyond the `known` ones of the model."""
    for group in [*prepared.train, *prepared.evaluate]:
        largest = max(int(part.max()) for part in (group.prompt, *group.responses))
        if largest >= known:
            raise UserError(
                f"token {largest} of this row is unknown to the model, which has {known}.",
                location=str(group.place),
                hint="Is this the model's tokenizer?",
            )


def anchor_model(run: Run, policy: Policy, groups: Sequence[TokenGroup]) -> Policy | None:
    """The model that the reference is, which may be the policy itself; None where there is no reference."""
    kind = run.reference
    if not isinstance(kind, Stored | Frozen | Moving):
        return None
    path = None if isinstance(kind, Moving) else kind.path
    if path is None and isinstance(kind, Stored):
        return policy
    module = load.load_model(
        path or run.model.path,
        revision=None if path else run.model.revision,
        weights=run.model.weights,
        device=policy.device,
        location="reference.path",
    )
    model = wrap(module, run.model.layout, policy.compute)[0]
    if model.vocab != policy.vocab:
        raise UserError("the reference has another vocabulary than the policy.", location=f"reference.path: {path}")
    model, _ = verify_layout(model, sample(groups, model), fall_back=run.model.layout == "auto")
    module.requires_grad_(False)
    return model


def anchored(
    run: Run,
    model: Policy | None,
    digests: Mapping[str, str],
    groups: Sequence[TokenGroup],
    show: Show,
    stop: Stop,
    dist: Distributed,
) -> tuple[anchors.Reference, tuple[str, dict[str, object]] | None]:
    """The reference that is this model, and what its pass over the groups did, if one is made."""
    kind = run.reference
    if model is None:
        return anchors.NoReference(), None
    if isinstance(kind, Moving):
        return anchors.MovingReference(model, kind.share, kind.every), None
    if not isinstance(kind, Stored):
        return anchors.FrozenReference(model), None
    store = Store(store_folder(kind), digests["reference"], anchors.numerics(model))
    done = anchors.score(
        model,
        store,
        groups,
        tokens=run.batch.tokens or 0,
        seed=run.seed,
        show=lambda at, of: show("scoring the reference", at, of),
        stop=stop.check,
        dist=dist,
    )
    text = (
        f"{done.scored} responses scored by the reference, {done.reused} taken from the store; {done.tokens_computed} "
        f"tokens computed where one pass a response needs {done.tokens_naive}"
    )
    details: dict[str, object] = {field: getattr(done, field) for field in done.__slots__}
    details["store"] = str(store.folder)
    return anchors.StoredReference(store), (text, details)


def store_folder(kind: Stored) -> Path:
    """Where the reference's numbers are kept."""
    return Path(kind.store or os.environ.get("PREFTUNE_STORE", "~/.cache/preftune/reference")).expanduser()

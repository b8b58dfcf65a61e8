"""Everything a run needs before its first step: checked, loaded, scored by the reference, planned."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from preftune.config.run import Frozen, Moving, Run, Stored
from preftune.data.groups import TokenGroup
from preftune.data.prepare import Prepared
from preftune.errors import UserError
from preftune.model import load
from preftune.model.memory import pack_budget
from preftune.model.policy import Policy, checked, trainable, wrap
from preftune.pack.batch import collate
from preftune.pack.plan import Plan, Step, make_plan, prefix_rank
from preftune.reference import reference as anchors
from preftune.reference.store import Store
from preftune.training.fit import Notes, fit
from preftune.training.material import Gather, gather
from preftune.training.show import Show
from preftune.training.signals import Stop
from preftune.training.step import Judge


@dataclass(frozen=True)
class Setup:
    """run: with every key that was open filled in. same_start: the reference is the model that training begins from."""

    run: Run
    policy: Policy
    tokeniser: load.PreTrainedTokenizerBase
    reference: anchors.Reference
    same_start: bool
    prepared: Prepared
    plan: Plan
    judge: Judge
    digests: dict[str, str]
    notes: Notes

    def groups(self, step: Step) -> list[TokenGroup]:
        """All rows of a step."""
        return [self.prepared.train[i] for pack in step.packs for i in pack]


def device_of(run: Run) -> torch.device:
    """The device of the run. Raises UserError where it is not there."""
    if run.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here.", where="device", mend='Use device = "auto".')
    return torch.device("cuda" if run.device != "cpu" and torch.cuda.is_available() else "cpu")


def set_up(run: Run, show: Show, stop: Stop, gather: Gather = gather) -> Setup:
    """Read, tokenise, load, check, score the reference and plan. Raises UserError."""
    material = gather(run, show)
    run, prepared, notes = fit(run, material.prepared)
    for sentence, _ in notes.values():
        show(sentence)
    show("loading the model")
    device = device_of(run)
    module = load.load_model(
        run.model.path, revision=run.model.revision, weights=run.model.weights, device=device, where="model.path"
    )
    policy, layout = wrap(module, run.model.layout, load.DTYPES[run.model.compute])
    in_vocabulary(policy.vocab, prepared)
    policy, off = checked(policy, first_pack(prepared.train, policy))
    policy = trainable(policy, checkpointing=run.model.checkpointing)
    budget = run.batch.tokens or pack_budget(module, device, run.model.checkpointing)
    run = msgspec.structs.replace(run, batch=msgspec.structs.replace(run.batch, tokens=budget))
    digests = {**material.digests, "model": load.weights_digest(module)}
    plan = plan_of(run, prepared.train, budget)
    judge = Judge(run.objective, run.data.rankings, prepared.account["max_tokens"], budget)
    used = sorted({i for step in plan.steps for pack in step.packs for i in pack})  # a short run needs few of them
    groups = [prepared.train[i] for i in used]
    groups += [*prepared.evaluate, *mismatched(judge, prepared, plan, notes, show)]
    reference, same, pass_note = anchor(run, policy, digests, groups, show, stop)
    text = f"layout {policy.layout}: {layout}; {off:.1e} nats a token off plain forward passes"
    notes["layout"] = (text, {"layout": policy.layout, "off": off})
    if pass_note:
        notes["reference"] = pass_note
    return Setup(run, policy, material.tokeniser, reference, same, prepared, plan, judge, digests, notes)


def mismatched(judge: Judge, prepared: Prepared, plan: Plan, notes: Notes, show: Show) -> list[TokenGroup]:
    """The mismatched responses of all steps and of the held-out rows, where the objective asks for them.

    Raises UserError where no step has any; where some have none, a note says how many.
    """
    if "mismatched" not in judge.needs:
        return []
    found = [judge.extra([prepared.train[i] for pack in step.packs for i in pack]) for step in plan.steps]
    alone = sum(not extra for extra in found)
    if alone == len(found):
        raise UserError("no step has rows of two prompts, so the drift cannot be estimated.", where="batch.rows",
                        mend="Raise it; where all rows have one prompt, use another objective.")  # fmt: skip
    if alone:
        text = f"{alone} of {len(found)} steps have rows of one prompt only; their drift is taken as 0"
        show(text)
        notes["drift"] = (text, {"steps": alone})
    return [group for extra in (*found, judge.extra(prepared.evaluate)) for group in extra]


def plan_of(run: Run, groups: Sequence[TokenGroup], tokens: int) -> Plan:
    """The run's plan with packs of so many tokens."""
    near = prefix_rank([g.prompt for g in groups])
    sizes, optim = [g.tokens for g in groups], run.optim
    return make_plan(
        sizes, rows=run.batch.rows, tokens=tokens, seed=run.seed, steps=optim.steps, epochs=optim.epochs, near=near
    )


def in_vocabulary(known: int, prepared: Prepared) -> None:
    """Raise UserError where a row has a token beyond the `known` ones of the model."""
    for group in [*prepared.train, *prepared.evaluate]:
        highest = max(int(part.max()) for part in (group.prompt, *group.responses))
        if highest >= known:
            raise UserError(
                f"token {highest} of this row is unknown to the model, which has {known}.",
                where=str(group.place),
                mend="Is this the model's tokeniser?",
            )


def first_pack(groups: Sequence[TokenGroup], policy: Policy):
    """The two shortest groups: what the layout is checked on."""
    return collate(sorted(groups, key=lambda g: g.tokens)[:2], policy.device)


def anchor(
    run: Run, policy: Policy, digests: dict[str, str], groups: Sequence[TokenGroup], show: Show, stop: Stop
) -> tuple[anchors.Reference, bool, tuple[str, dict[str, object]] | None]:
    """The reference, whether it is the policy's start, and what its pass did. Adds the reference's digest."""
    kind = run.reference
    if not isinstance(kind, Stored | Frozen | Moving):
        return anchors.NoReference(), False, None
    path = None if isinstance(kind, Moving) else kind.path
    model = policy
    if path is not None or not isinstance(kind, Stored):
        module = load.load_model(
            path or run.model.path,
            revision=None if path else run.model.revision,
            weights=run.model.weights,
            device=policy.device,
            where="reference.path",
        )
        model = wrap(module, run.model.layout, policy.compute)[0]
        if model.vocab != policy.vocab:
            raise UserError("the reference has another vocabulary than the policy.", where=f"reference.path: {path}")
        model, _ = checked(model, first_pack(groups, policy))
        module.requires_grad_(False)
    digests["reference"] = digests["model"] if model is policy else load.weights_digest(model.module)
    same = digests["reference"] == digests["model"]
    if isinstance(kind, Moving):
        return anchors.MovingReference(model, kind.share, kind.every), same, None
    if isinstance(kind, Frozen):
        return anchors.FrozenReference(model), same, None
    store = Store(store_folder(kind), digests["reference"], anchors.numerics(model))
    done = anchors.score(
        model,
        store,
        groups,
        tokens=run.batch.tokens or 0,
        seed=run.seed,
        show=lambda at, of: show("scoring the reference", at, of),
        stop=stop.check,
    )
    text = (
        f"{done.scored} responses scored by the reference, {done.reused} taken from the store; {done.tokens_computed} "
        f"tokens computed where one pass a response needs {done.tokens_naive}"
    )
    details: dict[str, object] = {field: getattr(done, field) for field in done.__slots__}
    details["store"] = str(store.folder)
    return anchors.StoredReference(store), same, (text, details)


def store_folder(kind: Stored) -> Path:
    """Where the reference's numbers are kept."""
    return Path(kind.store or os.environ.get("PREFTUNE_STORE", "~/.cache/preftune/reference")).expanduser()

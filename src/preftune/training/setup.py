"""Everything a run needs before its first step: checked, loaded, scored by the reference, planned."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec
import torch

from preftune.config.run import Frozen, Moving, Run, Stored
from preftune.data.groups import TokenGroup
from preftune.data.prepare import Prepared, prepare, read_rows
from preftune.data.tokens import load_tokeniser, tokeniser_digest
from preftune.errors import UserError
from preftune.model import load
from preftune.model.memory import pack_budget, positions
from preftune.model.policy import Policy, checked, trainable, wrap
from preftune.objective import Single, parts
from preftune.objective.arrange import ACCEPTS
from preftune.pack.batch import collate
from preftune.pack.plan import Plan, Step, make_plan, prefix_rank
from preftune.reference import reference as anchors
from preftune.reference.store import Store
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
    notes: dict[str, tuple[str, dict[str, object]]]  # event kind -> sentence, details

    def groups(self, step: Step) -> list[TokenGroup]:
        """All rows of a step."""
        return [self.prepared.train[i] for pack in step.packs for i in pack]


def device_of(run: Run) -> torch.device:
    """The device of the run. Raises UserError where it is not there."""
    if run.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here.", where="device", mend='Use device = "auto".')
    return torch.device("cuda" if run.device != "cpu" and torch.cuda.is_available() else "cpu")


def set_up(run: Run, show: Show, stop: Stop) -> Setup:
    """Read, tokenise, load, check, score the reference and plan. Raises UserError."""
    show("reading rows")
    rows = read_rows(run.data, run.seed)
    tokeniser = load_tokeniser(run.model.tokeniser or run.model.path, run.model.revision, run.data.template)
    config = load.load_config(run.model.path, run.model.revision, "model.path")
    prepared = prepare(rows, run.data, tokeniser, longest(run, config))
    fits(run, [*prepared.train, *prepared.evaluate])
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
    digests = {**rows.digests, "tokeniser": tokeniser_digest(tokeniser), "model": load.weights_digest(module)}
    plan = plan_of(run, prepared.train, budget)
    judge = Judge(run.objective, run.aggregate, run.data.rankings, prepared.account["max_tokens"], budget)
    groups = [*prepared.train, *prepared.evaluate, *judge.extra(prepared.evaluate)]
    for step in plan.steps:
        groups += judge.extra([prepared.train[i] for pack in step.packs for i in pack])
    reference, same, pass_note = anchor(run, policy, digests, groups, show, stop)
    notes: dict[str, tuple[str, dict[str, object]]] = {
        "layout": (
            f"layout {policy.layout}: {layout}; {off:.1e} nats a token off plain forward passes",
            {"layout": policy.layout, "off": off},
        ),
    }
    if pass_note:
        notes["reference"] = pass_note
    voted = sum(g.preferred != 1 for g in prepared.train)
    if voted and not any(part.votes for _, part in parts(run.objective)):
        notes["note"] = (f"{voted} rows carry votes, which this objective does not read", {})
    return Setup(run, policy, tokeniser, reference, same, prepared, plan, judge, digests, notes)


def plan_of(run: Run, groups: Sequence[TokenGroup], tokens: int) -> Plan:
    """The run's plan with packs of so many tokens."""
    near = prefix_rank([g.prompt for g in groups])
    sizes, optim = [g.tokens for g in groups], run.optim
    return make_plan(
        sizes, rows=run.batch.rows, tokens=tokens, seed=run.seed, steps=optim.steps, epochs=optim.epochs, near=near
    )


def longest(run: Run, config: load.PreTrainedConfig) -> int:
    """Tokens that a prompt with a response may have. Raises UserError where the model has fewer positions."""
    limit = positions(config)
    if run.data.max_tokens is not None and run.data.max_tokens > limit:
        raise UserError(f"the model has {limit} positions.", where="data.max_tokens", mend=f"Use {limit} or less.")
    return run.data.max_tokens or min(1024, limit)


def fits(run: Run, groups: Sequence[TokenGroup]) -> None:
    """Raise UserError where a row is of a kind that the objective has no use for."""
    for _, part in parts(run.objective):
        wrong = next((g for g in groups if g.kind not in ACCEPTS[part.kind]), None)
        if wrong is not None:
            kinds = " or ".join(ACCEPTS[part.kind])
            name = msgspec.to_builtins(part)["name"]
            raise UserError(
                f"this row is a {wrong.kind}, and the objective {name} needs a {kinds}.",
                where=str(wrong.place),
                mend=f"Objectives for it: {', '.join(for_kind(wrong.kind))}.",
            )
        bare = next((g for g in groups if g.scores is None), None) if "score" in part.needs else None
        if bare is not None:
            name = msgspec.to_builtins(part)["name"]
            raise UserError(f"the objective {name} needs a score of each response.", where=str(bare.place))


def for_kind(kind: str) -> list[str]:
    """Names of the objectives that a row of this kind serves."""
    return [str(msgspec.to_builtins(one())["name"]) for one in get_args(Single) if kind in ACCEPTS[one.kind]]


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

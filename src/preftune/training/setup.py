"""Everything a run needs before its first step: checked, loaded, scored by the reference, planned."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
from preftune.model.policy import Policy, checked, recompute_activations, wrap
from preftune.objective import Single, parts
from preftune.objective.arrange import ACCEPTS
from preftune.pack.batch import collate
from preftune.pack.plan import Packing, Plan, Step, make_plan, prefix_rank
from preftune.ranks import ALONE, Ranks
from preftune.reference import reference as anchors
from preftune.reference.store import Store
from preftune.training.identity import alike, identity
from preftune.training.show import Show
from preftune.training.signals import Stop
from preftune.training.step import Engine, Judge


@dataclass(frozen=True)
class Setup:
    """run: with every key that was open filled in. same_start: the reference is the model that training begins from."""

    run: Run
    engine: Engine
    tokeniser: load.PreTrainedTokenizerBase
    same_start: bool
    prepared: Prepared
    plan: Plan
    digests: dict[str, str]
    notes: dict[str, tuple[str, dict[str, object]]]  # event kind -> sentence, details

    @property
    def policy(self) -> Policy:
        return self.engine.policy

    @property
    def reference(self) -> anchors.Reference:
        return self.engine.reference

    @property
    def ranks(self) -> Ranks:
        return self.engine.ranks

    def groups(self, step: Step) -> list[TokenGroup]:
        """All rows of a step."""
        return [self.prepared.train[i] for i in step.order]


def device_of(run: Run, local: int = 0) -> torch.device:
    """The device of the run; local: which of its kind, on this machine. Raises UserError where it is not there."""
    if run.device == "cpu" or (run.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("there is no CUDA device here.", where="device", mend='Use device = "auto".')
    if local >= torch.cuda.device_count():
        raise UserError(f"there is no GPU for rank {local} of this machine.", mend="Start one a GPU.")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def set_up(run: Run, show: Show, stop: Stop, ranks: Ranks = ALONE) -> Setup:
    """Read, tokenise, load, check, score the reference and plan. Raises UserError."""
    show("reading rows")
    rows = read_rows(run.data, run.seed)
    tokeniser = load_tokeniser(run.model.tokeniser or run.model.path, run.model.revision, run.data.template)
    config = load.load_config(run.model.path, run.model.revision, "model.path")
    prepared = prepare(rows, run.data, tokeniser, longest(run, config))
    fits(run, [*prepared.train, *prepared.evaluate])
    show("loading the model")
    device = device_of(run, ranks.local)
    module = load.load_model(
        run.model.path, revision=run.model.revision, weights=run.model.weights, device=device, where="model.path"
    )
    policy, layout = wrap(module, run.model.layout, load.DTYPES[run.model.compute])
    in_vocabulary(policy.vocab, prepared)
    policy, off = checked(policy, first_pack(prepared.train, policy))
    if run.model.checkpointing:
        recompute_activations(module)
    budget = -ranks.highest(-(run.batch.tokens or pack_budget(module, device, run.model.checkpointing)))
    run = msgspec.structs.replace(run, batch=msgspec.structs.replace(run.batch, tokens=budget))
    packing = Packing(budget, scale_of(config))
    plan = plan_of(run, prepared.train, packing, ranks.count)
    judge = Judge(run.objective, run.aggregate, run.data.rankings, prepared.account["max_tokens"])
    digests = {**rows.digests, "tokeniser": tokeniser_digest(tokeniser), "model": load.weights_digest(module)}
    anchor = anchor_model(run, policy, prepared.train)
    if anchor is not None:
        digests["reference"] = digests["model"] if anchor is policy else load.weights_digest(anchor.module)
    alike(identity(run, digests), ranks)
    groups = [*prepared.train, *prepared.evaluate, *judge.extra(prepared.evaluate)]
    for step in plan.steps:
        groups += judge.extra([prepared.train[i] for i in step.order])
    reference, pass_note = anchored(run, anchor, digests, groups, show, stop, ranks)
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
    same = digests.get("reference") == digests["model"]
    engine = Engine(policy, reference, judge, packing, ranks)
    return Setup(run, engine, tokeniser, same, prepared, plan, digests, notes)


def plan_of(run: Run, groups: Sequence[TokenGroup], packing: Packing, ranks: int = 1) -> Plan:
    """The run's plan with its rows so packed, for so many ranks."""
    optim = run.optim
    return make_plan(
        [g.tokens for g in groups],
        rows=run.batch.rows,
        tokens=packing.tokens,
        seed=run.seed,
        steps=optim.steps,
        epochs=optim.epochs,
        near=prefix_rank([g.prompt for g in groups]),
        costs=[packing.cost(g) for g in groups],
        ranks=ranks,
    )


def scale_of(config: load.PreTrainedConfig) -> float:
    """Tokens of context at which attention takes as long as a layer's products with its matrices.

    Per token, and in multiples of the width, these are about 4 width + 3 inner, and attention half the path, twice.
    """
    text = config.get_text_config()
    width = text.hidden_size
    return 4 * width + 3 * (getattr(text, "intermediate_size", None) or 4 * width)


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
        where="reference.path",
    )
    model = wrap(module, run.model.layout, policy.compute)[0]
    if model.vocab != policy.vocab:
        raise UserError("the reference has another vocabulary than the policy.", where=f"reference.path: {path}")
    model, _ = checked(model, first_pack(groups, policy))
    module.requires_grad_(False)
    return model


def anchored(
    run: Run,
    model: Policy | None,
    digests: Mapping[str, str],
    groups: Sequence[TokenGroup],
    show: Show,
    stop: Stop,
    ranks: Ranks,
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
        ranks=ranks,
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

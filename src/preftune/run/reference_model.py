"""The reference of a run: loaded, checked against its own forward passes, and what it says of every response."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from preftune.config.run import Run
from preftune.distributed import Distributed
from preftune.model import load
from preftune.model.policy import Policy, wrap
from preftune.model.shard import mesh_of
from preftune.model.verify import sample, verify_layout
from preftune.reference.config import Moving, NoReference, Stored
from preftune.reference.fill import ReferencePass, filled, numerics, score_missing
from preftune.reference.moving import MovingReference
from preftune.reference.store import Store
from preftune.run.match_rows import Notes
from preftune.run.models import by_layer, check_vocabulary, in_turn_on
from preftune.tokens.groups import TokenGroup

MEMORY = "memory"  # as `reference.store`: keep the reference's numbers for this run alone


def load_reference_model(
    run: Run, policy: Policy, groups: Sequence[TokenGroup], dist: Distributed, *, copied: bool = False
) -> Policy | None:
    """The model that the reference is, cut by layers where the policy is; that may be the policy's own, unless it is to
    be `copied`, since it is asked after updates too. None where there is no reference."""
    kind = run.reference
    if kind is None or isinstance(kind, NoReference):
        return None
    path = kind.path if isinstance(kind, Stored) else None
    if path is None and isinstance(kind, Stored):
        if run.adapter is not None:
            return start_model(run, policy)
        if not copied:
            return policy
    device, mesh = policy.device, None
    if policy.weights.in_step:
        device, mesh = torch.device("cpu"), mesh_of(device)
    with in_turn_on(device, mesh, dist):
        module, _ = load.load_model(
            path or (run.model.path if isinstance(run.model.path, str) else copy.deepcopy(run.model.path)),
            revision=None if path else run.model.revision,
            weights=run.model.weights,
            compute=run.model.compute,
            device=device,
            location="reference.path",
        )
        model = wrap(module, run.model.layout, policy.compute)[0]
        check_vocabulary(model.vocab, groups, "reference")  # it may have more or fewer rows of padding than the policy
        module.requires_grad_(False)
        if mesh is not None:
            model = by_layer(model, policy.device, mesh)
    model, _ = verify_layout(model, sample(groups, model), fall_back=run.model.layout == "auto")
    return model


def start_model(run: Run, policy: Policy) -> Policy | None:
    """The model that training began from, once more; None where it was given loaded, and is the trained one by now."""
    if run.adapter is not None:
        from preftune.run.adapt import as_started

        return as_started(policy)
    if not isinstance(run.model.path, str):
        return None
    module, _ = load.load_model(run.model.path, revision=run.model.revision, weights=run.model.weights,
                                compute=run.model.compute, device=policy.device, location="model.path")  # fmt: skip
    module.requires_grad_(False)
    return wrap(module, policy.layout, policy.compute)[0]


def moving_reference(run: Run, model: Policy | None) -> MovingReference | None:
    """The reference that follows the policy; None where it stays, or there is none."""
    if model is None or not isinstance(run.reference, Moving):
        return None
    return MovingReference(model, run.reference.alpha, run.reference.update_every)


def fill_reference(
    run: Run, model: Policy | None, digest: str, groups: Sequence[TokenGroup], notes: Notes, dist: Distributed
) -> list[TokenGroup]:
    """The groups with the column `reference`, where the reference is one that stays; what is stored is not scored."""
    if model is None or isinstance(run.reference, Moving):
        return list(groups)
    assert isinstance(run.reference, Stored)
    store = Store(store_folder(run.reference), digest, numerics(model))
    reference_pass = score_missing(model, store, groups, tokens=run.batch.tokens or 0, dist=dist)
    notes["reference"] = _pass_note(reference_pass, store)
    return filled(groups, store)


def _pass_note(result: ReferencePass, store: Store) -> tuple[str, dict[str, object]]:
    text = (
        f"{result.scored} responses scored by the reference, {result.reused} taken from the store; "
        f"{result.tokens_computed} tokens computed where one pass a response needs {result.tokens_naive}"
    )
    if result.damaged:
        text += f"; {result.damaged} entries or files of the store are damaged, and were scored again"
    details: dict[str, object] = {name: getattr(result, name) for name in result.__slots__}
    return text, details | {"store": MEMORY if store.folder is None else str(store.folder)}


def store_folder(kind: Stored) -> Path | None:
    """Where the reference's numbers are kept; None where in memory only."""
    folder = kind.store or os.environ.get("PREFTUNE_STORE", "~/.cache/preftune/reference")
    return None if folder == MEMORY else Path(folder).expanduser()

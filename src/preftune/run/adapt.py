"""The adapter of a run, put into a model whose reference is known by then. Held by tests/laws/test_adapters.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from preftune import signals
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.model.adapter import AdapterWeights, begin_adapter, described, go_on, shaken
from preftune.model.adapter_files import adapter_at
from preftune.model.as_made import take_back
from preftune.model.heads import LanguageHead
from preftune.model.policy import Policy, trainable, wrap
from preftune.model.verify import sample, verify_layout
from preftune.run.match_rows import Notes
from preftune.run.models import refuse_lost_updates
from preftune.tokens.groups import TokenGroup


@signals.interruptible()
def adapted(run: Run, policy: Policy, digest: str, groups: Sequence[TokenGroup], notes: Notes) -> Policy:
    """The policy with the run's adapter, which alone learns. It is tried on some rows with numbers that show.

    policy: the model as the reference scored it; digest: of that. Raises UserError where the adapter cannot be, where
    what the model says with it is not what peft's own layers say, or where a part of it gets no gradient.
    """
    assert run.adapter is not None
    take_back(policy.module, "eager")  # parts that are fused would pass an adapter by
    path = run.model.path if isinstance(run.model.path, str) else ""
    folder = Path(path).expanduser()
    base = str(folder.resolve()) if path and folder.is_dir() else path
    weights = begin_adapter(
        policy.module, run.adapter, base=base, revision=run.model.revision, digest=digest, seed=run.seed
    )
    return verified(run, policy, weights, groups, notes)


def gone_on(run: Run, policy: Policy, groups: Sequence[TokenGroup], notes: Notes) -> Policy:
    """The policy with the stored adapter that the run goes on from. Raises UserError where it does not fit."""
    assert run.adapter is not None
    assert run.adapter.path is not None
    files = adapter_at(run.adapter.path, None, "adapter.path")
    if files is None:
        raise UserError(f"{run.adapter.path} is no adapter.", location="adapter.path",
                        hint="It is a folder or hub name with adapter_config.json.")  # fmt: skip
    digest = policy.weights.digest()
    take_back(policy.module, "eager")
    weights = go_on(policy.module, files, run.adapter, digest=digest)
    policy = verified(run, policy, weights, groups, notes)
    refuse_lost_updates(weights, run.optim.lr)
    return policy


def verified(run: Run, before: Policy, weights: AdapterWeights, groups: Sequence[TokenGroup], notes: Notes) -> Policy:
    """The policy of these weights in the layout that it had before, tried with an adapter that is shaken."""
    policy = replace(wrap(weights.module, before.layout, before.compute)[0], weights=weights)
    if not isinstance(policy.head, LanguageHead):
        policy = replace(policy, head=replace(policy.head, reads=before.head.reads))
    policy = trainable(policy, checkpointing=run.model.checkpointing)
    batch = sample(groups, policy)
    with shaken(weights):
        policy, off = verify_layout(policy, batch, fall_back=run.model.layout == "auto")
        with torch.enable_grad():
            policy.read(batch).sum().backward()
    without = [name for name, parameter in weights.trained().items() if parameter.grad is None]
    weights.zero_grad()
    if without:
        raise UserError(f"{len(without)} parts of the adapter have no effect, such as {without[0]}.",
                        location="adapter.targets", hint="This family goes past these layers; leave them out.")  # fmt: skip
    text = f"adapter: {described(weights)}; shaken, it is {off.worst:.1e} {policy.head.unit} off peft's own layers"
    notes["adapter"] = (text, {"off": off.worst, "learned": sum(p.numel() for p in weights.trained().values())})
    return policy


def as_started(policy: Policy) -> Policy:
    """What training began from: the same model in memory, asked without what its adapter has learned."""
    assert isinstance(policy.weights, AdapterWeights)
    start = policy.weights.as_started()
    start.activate()
    head = policy.head
    if isinstance(head, LanguageHead):
        layer = policy.module.get_output_embeddings()
        assert layer is not None
        head = replace(head, weight=layer.weight, bias=getattr(layer, "bias", None), in_place=False)
    policy.weights.activate()
    return replace(policy, weights=start, head=head)

"""The adapter of a run, put into a model whose reference is known by then. Held by tests/laws/test_adapters.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from msgspec.structs import replace as replace_keys

from preftune import signals
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.events import Note, emit
from preftune.model.adapter import AdapterWeights, described, shaken
from preftune.model.adapter_files import adapter_at
from preftune.model.as_made import take_back
from preftune.model.heads import LanguageHead, ScalarHead
from preftune.model.policy import Policy, trainable, wrap
from preftune.model.put_adapter import begin_adapter, go_on
from preftune.model.scalar import with_score
from preftune.model.shard import ShardedByStep
from preftune.model.verify import sample, verify_layout
from preftune.run.match_rows import Notes
from preftune.run.models import stored_adapter
from preftune.tokens.groups import TokenGroup

TRIED = 4  # rows on which an adapter is tried
VALUE = "value"  # name of the value model's adapter within peft


@signals.interruptible()
def adapted(run: Run, policy: Policy, digest: str, groups: Sequence[TokenGroup], notes: Notes) -> Policy:
    """The policy with the run's adapter, which alone learns. It is tried on some rows with numbers that show.

    policy: the model as the reference scored it; digest: of that. Raises UserError where the adapter cannot be, where
    what the model says with it is not what peft's own layers say, or where a part of it gets no gradient.
    """
    assert run.adapter is not None
    take_back(policy.module, "eager")  # parts that are fused would pass an adapter by
    weights = begin_adapter(
        policy.module, run.adapter, base=base_name(run), revision=run.model.revision, digest=digest, seed=run.seed
    )
    return verified(run, policy, weights, groups, notes)


def gone_on(run: Run, policy: Policy, groups: Sequence[TokenGroup], notes: Notes) -> Policy:
    """The policy with the stored adapter that the run goes on from. Raises UserError where it does not fit."""
    files = stored_adapter(run)
    assert run.adapter is not None
    assert files is not None
    digest = policy.weights.digest()
    take_back(policy.module, "eager")
    weights = go_on(policy.module, files, run.adapter, base=base_name(run), revision=run.model.revision, digest=digest,
                    location="adapter.path")  # fmt: skip
    if files.base and not _same_base(files.base, run):
        text = f"the adapter was made for {files.base}, and goes on with {base_name(run) or 'a model given in Python'}"
        notes["adapter_base"] = (text, {"made_for": files.base})
        emit(Note(text))
    return verified(run, policy, weights, groups, notes)


def value_on_base(run: Run, policy: Policy, path: str | None, groups: Sequence[TokenGroup]) -> Policy | None:
    """A value model on the policy's own base: a second adapter, and a score of its own. It begins from the adapter of a
    reward model at `path`; None where something else is there."""
    assert run.adapter is not None
    weights = policy.weights
    files = None if path is None else adapter_at(path, None, "value.path")
    if path is not None and (files is None or not files.of_scores or not _same_base(files.base, run)):
        return None
    take_back(policy.module, "eager")
    module = with_score(policy.module, "value.path")
    if files is None:
        fresh = replace_keys(run.adapter, path=None)
        own = begin_adapter(module, fresh, base=base_name(run), revision=run.model.revision, digest=weights.digest(),
                            seed=run.seed, name=VALUE)  # fmt: skip
    else:
        own = go_on(module, files, run.adapter, base=base_name(run), revision=run.model.revision,
                    digest=weights.digest(), location="value.path", name=VALUE)  # fmt: skip
    before = replace(policy, head=replace(ScalarHead.of(module), reads="tokens"))
    value = verified(run, before, own, groups, Notes())
    weights.activate()
    return value


def _same_base(base: str, run: Run) -> bool:
    """Whether an adapter is of the model of this run, by its name."""
    return bool(base) and base_name(run) == named_model(base)


def base_name(run: Run) -> str:
    """The name of the run's model, which finds it from everywhere; empty where it was given loaded."""
    return named_model(run.model.path) if isinstance(run.model.path, str) else ""


def named_model(path: str) -> str:
    folder = Path(path).expanduser()
    return str(folder.resolve()) if folder.is_dir() else path


def verified(run: Run, before: Policy, weights: AdapterWeights, groups: Sequence[TokenGroup], notes: Notes) -> Policy:
    """The policy of these weights in the layout that it had before, tried with an adapter that is shaken."""
    policy = replace(wrap(weights.module, before.layout, before.compute)[0], weights=weights)
    if isinstance(policy.head, ScalarHead):
        policy = replace(policy, head=replace(policy.head, reads=before.head.reads))
    policy = trainable(policy, checkpointing=run.model.checkpointing)
    # the model was tried on long rows before; an adapter takes each token by itself, and few of them little memory
    batch = policy.batch(sorted(sample(groups, policy).groups, key=lambda group: group.tokens)[:TRIED])
    with shaken(weights):
        policy, off = verify_layout(policy, batch, fall_back=run.model.layout == "auto")
        with torch.enable_grad():
            policy.read(batch).sum().backward()
    without = [name for name, parameter in weights.trained().items() if parameter.grad is None]
    weights.zero_grad()
    if without:
        raise UserError(f"{len(without)} parts of the adapter have no effect, such as {without[0]}.",
                        location="adapter.targets", hint="This family goes past these layers.")  # fmt: skip
    text = f"adapter: {described(weights)}; shaken, it is {off.worst:.1e} {policy.head.unit} off peft's own layers"
    notes["adapter"] = (text, {"off": off.worst, "learned": sum(p.numel() for p in weights.trained().values())})
    return policy


def as_started(policy: Policy) -> Policy:
    """What training began from: the same model in memory, asked without what its adapter has learned."""
    weights = policy.weights.inner if isinstance(policy.weights, ShardedByStep) else policy.weights
    assert isinstance(weights, AdapterWeights)
    start = weights.as_started()
    start.activate()
    head = policy.head
    if isinstance(head, LanguageHead):
        layer = policy.module.get_output_embeddings()
        assert layer is not None
        head = replace(head, weight=layer.weight, bias=getattr(layer, "bias", None), in_place=False)
    weights.activate()
    return replace(policy, weights=start, head=head)

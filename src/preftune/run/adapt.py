"""The adapter of a run: put into its model, tried, and left out where the reference is asked.

Held by tests/laws/test_adapters.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from msgspec.structs import replace as replace_keys
from transformers import PreTrainedModel

from preftune import signals
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.events import Note, emit
from preftune.model.adapter import AdapterWeights, adapters_in, described, shaken
from preftune.model.adapter_files import adapter_at
from preftune.model.as_made import take_back
from preftune.model.config import Adapter
from preftune.model.heads import LanguageHead, ScalarHead
from preftune.model.policy import Policy, trainable, wrap
from preftune.model.put_adapter import begin_adapter, go_on, put_beside
from preftune.model.scalar import with_score
from preftune.model.shard import ShardedByStep
from preftune.model.shard_layer import ShardedByLayer
from preftune.model.verify import sample, verify_layout
from preftune.model.weights import Weights, WholeModel
from preftune.run.match_rows import Notes
from preftune.run.models import base_name, same_base, stands_on_base, stored_adapter
from preftune.tokens.groups import TokenGroup

TRIED = 4  # rows on which an adapter is tried
VALUE, REWARD = "value", "reward"  # names of adapters within peft, beside that of the policy


@signals.interruptible()
def put_adapter(run: Run, module: PreTrainedModel, notes: Notes) -> AdapterWeights:
    """Put the run's adapter, a new one or the stored one that it goes on from, into a model that is not prepared for
    training yet. Raises UserError where it cannot be."""
    assert run.adapter is not None
    module.requires_grad_(False)
    names = {"base": base_name(run), "revision": run.model.revision, "digest": WholeModel(module).digest()}
    files = stored_adapter(run)
    if files is None:
        return begin_adapter(module, run.adapter, **names, seed=run.seed)
    files.tell_base(run.model.weights)
    if dropout := files.settings.get("lora_dropout"):
        text = f"the adapter was made with lora_dropout = {dropout}, which is not used: it learns without dropout"
        notes["adapter_dropout"] = (text, {"lora_dropout": dropout})
        emit(Note(text))
    if files.base and not same_base(run, files):
        text = f"the adapter was made for {files.base}, and goes on with {base_name(run) or 'a model given in Python'}"
        notes["adapter_base"] = (text, {"made_for": files.base})
        emit(Note(text))
    return go_on(module, files, run.adapter, **names, location="adapter.path")


def fresh_like(table: Adapter) -> Adapter:
    """Of a value model: parts that the policy learns whole are its own, and so are the layers of a stored adapter,
    which may be some that a model with a score does not have."""
    targets = table.targets if table.path is None else "all-linear"
    return replace_keys(table, path=None, train_also=(), targets=targets)


def value_on_base(
    run: Run, policy: Policy, path: str | None, groups: Sequence[TokenGroup], location: str
) -> Policy | None:
    """A value model on the policy's own base: a second adapter, and a score of its own. It begins from the adapter of a
    reward model at `path`; None where something else is there. location: the key that names the path."""
    assert run.adapter is not None
    weights = policy.weights
    if path is not None and not stands_on_base(run, path, location):
        return None
    files = None if path is None else adapter_at(path, None, location)
    take_back(policy.module, "eager")
    module = with_score(policy.module, location)
    if files is None:
        fresh = fresh_like(run.adapter)
        own = begin_adapter(module, fresh, base=base_name(run), revision=run.model.revision, digest=weights.digest(),
                            seed=run.seed, name=VALUE)  # fmt: skip
    else:
        own = go_on(module, files, run.adapter, base=base_name(run), revision=run.model.revision,
                    digest=weights.digest(), location=location, name=VALUE)  # fmt: skip
    value = replace(wrap(module, policy.layout, policy.compute)[0], weights=own)
    value = trainable(replace(value, head=replace(ScalarHead.of(module), reads="tokens")),
                      checkpointing=run.model.checkpointing)  # fmt: skip
    value = tried(run, value, groups, Notes())
    weights.activate()
    return value


def reward_on_base(run: Run, policy: Policy, path: str) -> Policy:
    """The reward model that is an adapter of the policy's base, on that base in memory (`stands_on_base`). It is to be
    compared with its own forward pass before it is believed."""
    weights, files = policy.weights, adapter_at(path, None, "reward.model")
    assert files is not None
    names = adapters_in(policy.module)
    take_back(policy.module, "eager")
    module = with_score(policy.module, "reward.model")
    own = put_beside(module, files, digest=weights.digest(), location="reward.model", name=f"{REWARD}_{len(names)}")
    reward = replace(wrap(module, policy.layout, policy.compute)[0], weights=own)
    reward = trainable(reward, checkpointing=run.model.checkpointing)  # what was taken back, of layers that are shared
    weights.activate()
    return reward


def tried(run: Run, policy: Policy, groups: Sequence[TokenGroup], notes: Notes) -> Policy:
    """The policy, tried on some rows with an adapter whose numbers show. Raises UserError where what the model says
    with it is not what peft's own layers say, or where a part of it gets no gradient."""
    weights = adapter_of(policy.weights)
    # the base is tried on long rows too; an adapter takes each token by itself, and few of them little memory
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
    start: Weights = adapter_of(policy.weights).as_started()
    if isinstance(policy.weights, ShardedByLayer):
        start = replace(policy.weights, inner=start)
    start.activate()
    head = policy.head.of_pass(policy.module)
    if isinstance(head, LanguageHead):
        head = replace(head, in_place=False)
    policy.weights.activate()
    return replace(policy, weights=start, head=head)


def adapter_of(weights: Weights) -> AdapterWeights:
    """The adapter that learns, also where ranks divide it or its base."""
    while isinstance(weights, (ShardedByLayer, ShardedByStep)):
        weights = weights.inner
    assert isinstance(weights, AdapterWeights)
    return weights

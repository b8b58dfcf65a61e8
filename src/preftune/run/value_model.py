"""The value model of PPO. Held by tests/laws/test_online.py and tests/laws/test_adapters.py."""

from __future__ import annotations

from dataclasses import replace as changed

from msgspec.structs import replace

from preftune import signals
from preftune.config.run import Run, reward_tables
from preftune.model.heads import ScalarHead
from preftune.model.load import DTYPES
from preftune.model.policy import Policy, trainable, wrap
from preftune.model.scalar import load_scorer
from preftune.model.weights import Weights, WholeModel
from preftune.rollout.config import Value
from preftune.run.match_rows import Notes
from preftune.run.models import verified
from preftune.run.tasks import TaskSet


@signals.interruptible()
def load_value_model(run: Run, policy: Policy, tasks: TaskSet, notes: Notes) -> Policy:
    """The value model: value.path, else the reward model, else the trunk of the policy's start with a score of 0."""
    path, location = (run.value or Value()).path, "value.path"
    if path is None and (path := next((reward.model for reward in reward_tables(run) if reward.model), None)):
        location = "reward.model"
    if run.adapter is not None:
        from preftune.run.adapt import value_on_base  # peft is imported where it is needed

        if (shared := value_on_base(run, policy, path, tasks.dataset.train, location)) is not None:
            notes["value"] = ("the value model is a second adapter on the policy's base, with a score of its own", {})
            return shared
    loaded = load_scorer(path or run.model.path, revision=None if path else run.model.revision,
                         weights=run.model.weights, compute=run.model.compute, device=policy.device,
                         location=location, fresh=True)  # fmt: skip
    weights: Weights = WholeModel(loaded.module)
    if run.adapter is not None:
        from preftune.run.adapt import put_adapter

        base = run.model if path is None else replace(run.model, path=path, revision=None)
        fresh = replace(run.adapter, path=None, train_also=())  # a new one, of this base
        run = replace(run, model=base, adapter=fresh)
        weights = put_adapter(run, loaded.module, Notes())
    model, reason = wrap(loaded.module, run.model.layout, DTYPES[run.model.compute])
    assert isinstance(model.head, ScalarHead)
    model = trainable(changed(model, weights=weights, head=changed(model.head, reads="tokens")),
                      checkpointing=run.model.checkpointing)  # fmt: skip
    model, _ = verified(run, model, tasks.dataset.train, Notes())
    notes["value"] = (f"value model {path or run.model.path}, layout {model.layout}: {reason}", {})
    return model

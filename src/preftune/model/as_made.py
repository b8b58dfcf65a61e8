"""A model as its maker gave it: what `Policy` changes for training is taken back, for a while or for good.

Changed are the attention implementation, parts that are fused, layers that recompute activations, and the hooks that
prune the last layer. Held by tests/model/test_as_made.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType

from torch import nn
from transformers import PreTrainedModel

from preftune.model.fuse import PACKAGE, our_forward
from preftune.model.layout import PrunedLayer


@contextmanager
def as_made(module: PreTrainedModel, attention: str | None = None) -> Iterator[None]:
    """The model without preparation and with this attention, or else its family's; afterwards prepared as it was."""
    if attention is None:
        before = str(module.config._attn_implementation)
        attention = "eager" if before.startswith(PACKAGE) else before
    prepare_again = take_back(module, attention)
    try:
        yield
    finally:
        prepare_again()


@contextmanager
def given_back(model: object) -> Iterator[None]:
    """A loaded model of the caller's, which is prepared meanwhile, is afterwards as its maker gave it, in the mode and
    with the attention and the frozen parameters that it came with, beside the adapter of a run that did not fail; names
    of models pass through."""
    if not isinstance(model, PreTrainedModel):
        yield
        return
    attention, trained = str(model.config._attn_implementation), {p: p.requires_grad for p in model.parameters()}
    of_caller, training, failed = has_adapter_layers(model), model.training, True
    try:
        yield
        failed = False
    finally:
        take_back(model, attention)
        if "peft" in sys.modules and not of_caller:
            from preftune.model.unload import leave_tuned, unload

            unload(model) if failed else leave_tuned(model)
        for parameter, learns in trained.items():
            parameter.requires_grad_(learns)
        model.train(training)


def has_adapter_layers(module: nn.Module) -> bool:
    """Whether a model has layers of peft: an adapter, or what is left of one that transformers has deleted."""
    return any("lora_" in name or ".base_layer." in name for name, _ in module.named_parameters())


def take_back(module: PreTrainedModel, attention: str) -> Callable[[], None]:
    """Take all preparation off a model, and give it this attention; returns what puts all back."""
    forwards = {part: forward for part in module.modules() if (forward := our_forward(part)) is not None}
    for part in forwards:
        del part.forward
    tables = [table for part in module.modules() for table in (part._forward_pre_hooks, part._forward_hooks)]
    hooks = [(table, dict(table)) for table in tables if any(_ours(hook) for hook in table.values())]
    for table, contents in hooks:
        for key in [key for key, hook in contents.items() if _ours(hook)]:
            del table[key]
    before = str(module.config._attn_implementation)
    if before != attention:
        module.set_attn_implementation(attention)

    def prepare_again() -> None:
        for part, forward in forwards.items():
            part.forward = forward
        for table, contents in hooks:
            table.clear()
            table.update(contents)  # in place: handles of torch refer to the table
        if before != attention:
            module.set_attn_implementation(before)

    return prepare_again


def _ours(hook: object) -> bool:
    return isinstance(hook, MethodType) and isinstance(hook.__self__, PrunedLayer)

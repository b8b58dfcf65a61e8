"""A model of which no rank has all: torch's `fully_shard` makes the parameters of a layer whole while it computes.

Held by tests/model/test_shard.py and tests/laws/test_shards.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import TypeVar, final

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from preftune.distributed import Distributed
from preftune.folders import Folder
from preftune.model.shard import mesh_of, refuse_single_numbers
from preftune.model.weights import Weights
from preftune.pack.batch import Batch

T = TypeVar("T")
PASS = "pass_of_weights"  # name of the method through which all work on the weights goes


@final
@dataclass(frozen=True)
class ShardedByLayer(Weights):
    """Everything divided: a layer's weights are whole on a rank while it computes, and its gradients go back at once.

    So ranks wait for each other in every layer, and each must take as many passes. inner: what is trained, its
    module's parameters cut by torch's `fully_shard`.
    """

    inner: Weights

    @classmethod
    def of(cls, inner: Weights) -> ShardedByLayer:
        """Cut weights that all ranks have whole. Parts of the model are swapped and pruned before, not after. Raises
        UserError where a tensor has no rows."""
        refuse_single_numbers(inner)
        module, mesh = inner.module, mesh_of(inner)
        for part in (*layers_of(module), module):
            fully_shard(part, mesh=mesh)
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)  # a sum, and not the mean
                part.set_force_sum_reduction_for_comms(True)  # gloo has no product with a factor on the way
        setattr(module, PASS, MethodType(_pass, module))
        register_fsdp_forward_method(module, PASS)
        return cls(module, inner)

    @property
    def sharded(self) -> bool:
        return True

    @property
    def in_step(self) -> bool:
        return True

    def trained(self) -> dict[str, nn.Parameter]:
        return self.inner.trained()

    def rate(self, name: str) -> float:
        return self.inner.rate(name)

    def activate(self) -> None:
        self.inner.activate()

    def digest(self) -> str:
        """Every rank must ask."""
        with self._gathered(on_all=True):
            return self.inner.digest()

    def state(self) -> dict[str, Tensor]:
        return self.inner.state()

    def replicas(self) -> dict[str, Tensor]:
        return {}

    def export(self, into: Folder, tokenizer: PreTrainedTokenizerBase) -> None:
        """Within `whole`."""
        self.inner.export(into, tokenizer)

    def through(self, work: Callable[[Batch], T], batch: Batch) -> T:
        answer = getattr(self.module, PASS)(work, batch)
        if not torch.is_grad_enabled():
            self._reshard()
        return answer

    def _reshard(self) -> None:
        """Let go of embedding and head, which otherwise stay whole until a backward pass."""
        assert isinstance(self.module, FSDPModule)
        self.module.reshard()

    def sum_gradients(self, dist: Distributed) -> None:
        """Each backward pass has done so."""

    @contextmanager
    def whole(self) -> Iterator[None]:
        """One tensor is gathered at a time; rank 0 keeps them all, on the host."""
        with self._gathered(on_all=False):
            yield

    @contextmanager
    def _gathered(self, *, on_all: bool) -> Iterator[None]:
        self._reshard()
        places = [
            (part, name, p) for part in self.module.modules() for name, p in part._parameters.items() if p is not None
        ]
        tensors: dict[nn.Parameter, nn.Parameter] = {}
        for parameter in dict.fromkeys(p for _, _, p in places):
            tensor = parameter.full_tensor().detach() if isinstance(parameter, DTensor) else parameter.detach()
            if on_all or self._first:
                tensors[parameter] = nn.Parameter(tensor.cpu(), parameter.requires_grad)
        try:
            for part, name, parameter in places:
                part._parameters[name] = tensors.get(parameter, parameter)
            yield
        finally:
            for part, name, parameter in places:
                part._parameters[name] = parameter

    @property
    def _first(self) -> bool:
        return torch.distributed.get_rank() == 0


def _pass(self: nn.Module, work: Callable[[Batch], T], batch: Batch) -> T:
    """A method of the module, around which `fully_shard` makes parameters whole."""
    return work(batch)


def layers_of(module: PreTrainedModel) -> list[nn.Module]:
    """The layers that a family names, or which can be recomputed."""
    names = set(module._no_split_modules or ())
    return [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer) or type(m).__name__ in names]

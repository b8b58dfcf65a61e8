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
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from preftune.distributed import Distributed
from preftune.lost_rank import exchanging
from preftune.model.shard import Sharded, ShardedByStep, mesh_of, refuse_single_numbers
from preftune.model.weights import Weights
from preftune.pack.batch import Batch

T = TypeVar("T")
PASS = "pass_of_weights"  # name of the method through which all work on the weights goes


@final
@dataclass(frozen=True)
class ShardedByLayer(Sharded):
    """Everything divided: a layer's weights are whole on a rank while it computes, and its gradients go back at once.

    So ranks wait for each other in every layer, and each must take as many passes. What stands beside a base that stays
    is whole on every rank, and its moments and updates are divided as in `ShardedByStep`. began: digest of the model as
    it was whole.
    """

    began: str

    @classmethod
    def of(cls, whole: Weights, device: torch.device | None = None, mesh: DeviceMesh | None = None) -> ShardedByLayer:
        """Cut weights, and put this rank's on the device, if not the one where they are; it never holds more than a
        layer of them, or embedding and head. Ranks need not do so at one time where they give a mesh.

        whole: of a model whose parts are swapped and pruned already. Raises UserError where a tensor has no rows.
        """
        module, began, beside = whole.module, whole.digest(), set(whole.beside())
        device = device or module.device
        mesh = mesh or mesh_of(device)
        refuse_single_numbers(dict(module.named_parameters()))
        for parameter in beside:
            parameter.data = parameter.data.to(device)
        for part in (*layers_of(module), module):
            fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=beside)
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)  # a sum, and not the mean
                part.set_force_sum_reduction_for_comms(True)  # gloo has no product with a factor on the way
        setattr(module, PASS, MethodType(_pass, module))
        register_fsdp_forward_method(module, PASS)
        return cls(module, ShardedByStep.of(whole) if beside else whole, began)

    @property
    def in_step(self) -> bool:
        return True

    def digest(self) -> str:
        return self.began

    def replicas(self) -> dict[str, Tensor]:
        return self.inner.replicas() if self.inner.sharded else {}

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def through(self, work: Callable[[Batch], T], batch: Batch) -> T:
        self.activate()
        with exchanging():
            return getattr(self.module, PASS)(work, batch)

    def sum_gradients(self, dist: Distributed) -> None:
        """Each backward pass has done so for what is cut by layers."""
        if self.inner.sharded:
            self.inner.sum_gradients(dist)

    def share(self, dist: Distributed) -> None:
        self.inner.share(dist)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """One tensor is gathered at a time; rank 0 keeps them all, on the host. What stands beside a base is whole."""
        if self.inner.sharded:
            yield
            return
        places = [
            (part, name, p) for part in self.module.modules() for name, p in part._parameters.items() if p is not None
        ]
        tensors: dict[nn.Parameter, nn.Parameter] = {}
        for parameter in dict.fromkeys(p for _, _, p in places):
            tensor = parameter.full_tensor().detach() if isinstance(parameter, DTensor) else parameter.detach()
            if torch.distributed.get_rank() == 0:
                tensors[parameter] = nn.Parameter(tensor.cpu(), parameter.requires_grad)
        try:
            for part, name, parameter in places:
                part._parameters[name] = tensors.get(parameter, parameter)
            yield
        finally:
            for part, name, parameter in places:
                part._parameters[name] = parameter


def _pass(self: nn.Module, work: Callable[[Batch], T], batch: Batch) -> T:
    """A method of the module, around which `fully_shard` makes parameters whole."""
    return work(batch)


def layers_of(module: PreTrainedModel) -> list[nn.Module]:
    """The layers that a family names, or which can be recomputed."""
    names = set(module._no_split_modules or ())
    return [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer) or type(m).__name__ in names]

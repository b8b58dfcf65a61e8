"""What is trained with what trains it, and its moments as a checkpoint holds them: `PARAMETER/MOMENT` -> tensor.

Held by tests/training/test_checkpoint.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from preftune.distributed import Distributed
from preftune.model.weights import Weights
from preftune.training.optimizer import Moment, Optimizer


@dataclass(frozen=True)
class Learner:
    """What is trained, and what trains it."""

    weights: Weights
    optimizer: Optimizer

    @property
    def moment_bytes(self) -> int:
        """Bytes of all moments once every parameter has had a gradient."""
        parameters = self.weights.trained().values()
        return sum(moment.nbytes for p in parameters for moment in self.optimizer.moments(p).values())

    def moments(self) -> dict[str, Tensor]:
        """The moments of every parameter that has had a gradient."""
        return {
            f"{name}/{key}": tensor
            for name, parameter in self.weights.trained().items()
            for key, tensor in self.optimizer.state[parameter].items()
        }

    def expected_moments(self, tensors: Mapping[str, Tensor]) -> dict[str, Moment]:
        """What the moments of a checkpoint must be like: of each parameter that has any among these, all."""
        return {
            f"{name}/{key}": moment
            for name, parameter in self.weights.trained().items()
            if _of_parameter(tensors, name)
            for key, moment in self.optimizer.moments(parameter).items()
        }

    def load_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over moments that are as expected."""
        for name, parameter in self.weights.trained().items():
            moments = self.optimizer.moments(parameter)
            self.optimizer.state[parameter] = {
                key: tensor.to(moments[key].device(parameter)) for key, tensor in _of_parameter(tensors, name).items()
            }

    def broadcast(self, dist: Distributed) -> None:
        """Give every rank the weights and moments of rank 0."""
        state, parameters = self.optimizer.state, list(self.weights.trained().values())
        has_moments = torch.tensor([int(dist.first and bool(state.get(p))) for p in parameters])
        for parameter in itertools.compress(parameters, dist.sum(has_moments).tolist()):
            if not dist.first:
                moments = self.optimizer.moments(parameter)
                state[parameter] = {name: moment.zeros(parameter) for name, moment in moments.items()}
            dist.broadcast(tensor for _, tensor in sorted(state[parameter].items()))
        dist.broadcast(self.weights.state().values())


def _of_parameter(moments: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.rpartition("/")[2]: tensor for key, tensor in moments.items() if key.rpartition("/")[0] == name}

"""Tensors that are cut among ranks (DTensor): each rank has rows of every trained one, and updates those.

Here each rank has the whole model besides, as long as a step lasts; shard_layer.py divides that too. Held by
tests/model/test_shard.py and tests/laws/test_shards.py.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedTokenizerBase

from preftune.distributed import Distributed, buckets
from preftune.errors import UserError
from preftune.folders import Folder
from preftune.model.weights import Weights, local


def rows_of(size: int, rank: int, world_size: int) -> slice:
    """Which of so many rows a rank has, as torch.chunk cuts them: none where there are fewer than ranks."""
    each = -(-size // world_size)
    return slice(min(size, rank * each), min(size, (rank + 1) * each))


@dataclass(frozen=True)
class Sharded(Weights):
    """Weights of which every rank has a part. inner: what is trained, which answers where the parts do not."""

    inner: Weights

    @property
    def sharded(self) -> bool:
        return True

    def trained(self) -> dict[str, nn.Parameter]:
        return self.inner.trained()

    def digest(self) -> str:
        return self.inner.digest()

    def state(self) -> dict[str, Tensor]:
        return self.inner.state()

    def export(self, into: Folder, tokenizer: PreTrainedTokenizerBase) -> None:
        """Within `whole`."""
        self.inner.export(into, tokenizer)

    def rate(self, name: str) -> float:
        return self.inner.rate(name)

    def activate(self) -> None:
        self.inner.activate()

    def replicas(self) -> dict[str, Tensor]:
        return self.inner.replicas()

    def sampled(self) -> Tensor:
        return self.inner.sampled()

    @abstractmethod
    def share(self, dist: Distributed) -> None: ...


@final
@dataclass(frozen=True)
class ShardedByStep(Sharded):
    """Whole weights and gradients on every rank, moments and updates divided.

    Packs go through without any talk, as many as each rank has. Then one exchange sums the gradients and leaves each
    rank its rows of them, and after the update another one gives every rank the rows of the others: together as much
    traffic as the sum of whole gradients. parts: this rank's rows of what is trained, which share its memory.
    """

    mesh: DeviceMesh
    parts: Mapping[str, nn.Parameter]

    @classmethod
    def of(cls, inner: Weights) -> ShardedByStep:
        """Weights that all ranks have whole. Raises UserError where a trained tensor has no rows."""
        refuse_single_numbers(inner.state())
        mesh = mesh_of(inner.module.device)
        return cls(
            inner.module, inner, mesh, {n: nn.Parameter(_part(p.detach(), mesh)) for n, p in inner.trained().items()}
        )

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.parts)

    def state(self) -> dict[str, Tensor]:
        return {name: _part(tensor, self.mesh) for name, tensor in self.inner.state().items()}

    def zero_grad(self) -> None:
        self.inner.zero_grad()
        super().zero_grad()

    def sum_gradients(self, dist: Distributed) -> None:
        """The sum is taken in fp32 or wider. A gradient that no rank has stays None, as in one process."""
        part_of = {whole: self.parts[name] for name, whole in self.inner.trained().items()}
        for bucket in buckets(dist.with_gradient(part_of), nn.Parameter.numel):
            stacked = [_stacked(_gradient(whole), dist.world_size) for whole in bucket]
            summed = dist.scatter_sum(stacked[0] if len(stacked) == 1 else torch.cat(stacked, 1))
            for whole, numbers in zip(bucket, summed.split([rows.shape[1] for rows in stacked]), strict=True):
                part, shape = part_of[whole], local(part_of[whole]).shape
                gradient = numbers[: shape.numel()].view(shape).to(part.dtype)
                part.grad = cut_tensor(gradient, whole.shape, self.mesh)
                whole.grad = None

    def share(self, dist: Distributed) -> None:
        trained = [p.detach() for p in self.inner.trained().values()]
        for dtype in dict.fromkeys(tensor.dtype for tensor in trained):
            for bucket in buckets((tensor for tensor in trained if tensor.dtype == dtype), Tensor.numel):
                own = [_padded(tensor[_rows(tensor, self.mesh)], _most(tensor, dist.world_size)) for tensor in bucket]
                gathered = dist.gather(torch.cat(own)).split([len(part) for part in own], 1)
                for tensor, parts in zip(bucket, gathered, strict=True):
                    tensor.copy_(parts.reshape(-1)[: tensor.numel()].view_as(tensor))


def mesh_of(device: torch.device) -> DeviceMesh:
    """All ranks in a row, with devices of this type."""
    return init_device_mesh(device.type, (torch.distributed.get_world_size(),))


def refuse_single_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError where a tensor is one number without an axis, which cannot be cut."""
    if name := next((name for name, tensor in tensors.items() if not tensor.dim()), ""):
        raise UserError(f"{name} is a single number, which cannot be divided among ranks.", location="ranks.shard",
                        hint='Use shard = "none".')  # fmt: skip


def _rows(tensor: Tensor, mesh: DeviceMesh) -> slice:
    """Those of this rank."""
    return rows_of(len(tensor), mesh.get_local_rank(), mesh.size())


def _part(tensor: Tensor, mesh: DeviceMesh) -> DTensor:
    """This rank's rows of a tensor that it has whole, in the same memory."""
    return cut_tensor(tensor[_rows(tensor, mesh)], tensor.shape, mesh)


def cut_tensor(rows: Tensor, shape: Sequence[int], mesh: DeviceMesh) -> DTensor:
    """A rank's rows as a part of a tensor of this shape."""
    stride = torch.empty(tuple(shape), device="meta").stride()
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """That of this rank; zeros where only others have any."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _most(tensor: Tensor, parts: int) -> int:
    """Numbers that the largest of so many parts of a tensor has."""
    return -(-len(tensor) // parts) * (tensor.numel() // max(1, len(tensor)))


def _stacked(whole: Tensor, parts: int) -> Tensor:
    """(parts, n): the rows of each part of a tensor side by side, in fp32 or wider, with zeros behind the last."""
    wide = whole.to(torch.promote_types(whole.dtype, torch.float32))
    return _padded(wide, parts * _most(whole, parts)).view(parts, -1)


def _padded(tensor: Tensor, length: int) -> Tensor:
    """(length,) its numbers, and zeros behind them; no copy where there is nothing to add."""
    flat = tensor.reshape(-1)
    return flat if len(flat) == length else nn.functional.pad(flat, (0, length - len(flat)))

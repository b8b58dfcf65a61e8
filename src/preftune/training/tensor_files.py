"""The tensors of a checkpoint: a file of one process that has them whole, or one a rank; any number of ranks read them.

A rank's file `weights-00001-of-00002.safetensors` has its rows of every tensor under the tensor's name, in the order of
ranks, so a whole tensor is its parts one after the other. Held by tests/training/test_tensor_files.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from preftune import files, folders
from preftune.distributed import Distributed
from preftune.errors import IO, UserError
from preftune.model.shard import cut_tensor, rows_of
from preftune.model.weights import local
from preftune.record.writer import CHECKPOINT_FILES

Parts = Mapping[str, Mapping[str, Tensor]]  # `weights`, `optimizer` and so on -> name -> tensor


def file_name(part: str, rank: int, world_size: int) -> str:
    """The file of a part of a checkpoint that a rank writes."""
    return f"{part}.safetensors" if world_size == 1 else f"{part}-{rank + 1:05d}-of-{world_size:05d}.safetensors"


def files_of(part: str, listed: Collection[str]) -> list[str]:
    """Those of the listed files that hold a part of a checkpoint, in the order of ranks; empty where any is missing."""
    if file_name(part, 0, 1) in listed:
        return [file_name(part, 0, 1)]
    first = re.compile(re.escape(part) + r"-00001-of-(\d{5})\.safetensors")
    counts = [int(match[1]) for name in listed if (match := first.fullmatch(name))]
    names = [file_name(part, rank, counts[0]) for rank in range(counts[0])] if len(counts) == 1 else []
    return names if all(name in listed for name in names) else []


def write(path: Path, parts: Parts, state: object, dist: Distributed) -> None:
    """Write a folder that appears at `path` whole or not at all, of which each of these ranks writes its tensors.

    state: what state.json says. Raises UserError on every rank where any cannot write.
    """
    with ExitStack() as stack:
        folder = None
        with dist.agreed():
            folder = stack.enter_context(folders.folder(path, CHECKPOINT_FILES)) if dist.first else None
        number = dist.broadcast_int(folder.number - 2**63 if folder is not None else 0) + 2**63
        with dist.agreed(), files.reported(path):
            into = folder or folders.Folder.built_elsewhere(path, number)
            if not into.path.is_dir():
                raise UserError("the folder that rank 0 has made is not here.", location=str(path.parent), code=IO,
                                hint="All ranks of a divided run write into one folder: is it on a disk that every "
                                "machine sees?")  # fmt: skip
            for part, tensors in parts.items():
                name = file_name(part, dist.rank, dist.world_size)
                into.tensors(name, {key: local(tensor) for key, tensor in tensors.items()})
                if folder is None:
                    files.sync(into.path / name)  # a file of another machine is not on the disk when rank 0 says so
            if folder is not None:
                folder.json("state.json", state)
        with dist.agreed():
            stack.close()


def read(paths: Sequence[Path], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor of a part of a checkpoint that stands in the files of some ranks, by its name: cut among ranks where
    that of the same name in `like` is.

    A moment `NAME/exp_avg` is cut as the parameter `NAME`; a number without axes is whole on every rank.
    """
    ranks = [safe_open(path, "pt") for path in paths]
    names: list[str] = ranks[0].keys()
    return {name: _read(name, ranks, like.get(name.rpartition("/")[0] or name)) for name in names}


def _read(name: str, ranks: Sequence[safe_open], like: Tensor | None) -> Tensor:
    parts = [file.get_slice(name) for file in ranks]
    counts = [shape[0] for part in parts if (shape := part.get_shape())]
    if not counts:
        return ranks[0].get_tensor(name)
    if not isinstance(like, DTensor):
        return _rows(parts, slice(0, sum(counts)))
    mesh, shape = like.device_mesh, (sum(counts), *parts[0].get_shape()[1:])
    return cut_tensor(_rows(parts, rows_of(shape[0], mesh.get_local_rank(), mesh.size())), shape, mesh)


def _rows(parts: Sequence[Any], rows: slice) -> Tensor:
    """These rows of a tensor, of which each file has the ones behind those of the file before."""
    before, pieces = 0, []
    for part in parts:
        count = part.get_shape()[0]
        start, stop = max(rows.start - before, 0), min(rows.stop - before, count)
        if start < stop:
            pieces.append(part[start:stop])
        before += count
    return torch.cat(pieces) if pieces else parts[0][:0]

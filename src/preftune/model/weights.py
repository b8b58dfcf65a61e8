"""What is trained, as one value: it answers for its parameters, digest, checkpoint and export; and which parameters of
a model are trained, by patterns of names.

Nothing else in the code knows which kind of weights a model has. Held by tests/model/test_weights.py and
tests/model/test_trained.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar, final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.distributed import Distributed
from preftune.errors import UserError
from preftune.folders import Folder
from preftune.pack.batch import Batch

SCORE = "score.weight"  # what a reward model has in place of an output layer
TRAINABLE = "model.trainable"  # the key of patterns
LISTED = 20  # names that an error gives
SAMPLED = 4096  # numbers of a tensor that stand for it
T = TypeVar("T")
THREADS = min(16, os.cpu_count() or 1)  # that hash tensors: 28 GB in seconds, and not in half a minute
UNRELATED = ("_name_or_path", "transformers_version", "_attn_implementation", "use_cache", "dtype")  # to what it says


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor that is cut among ranks (model/shard.py); one that is not cut, as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True)
class Weights(ABC):
    """The weights of a module, all of them or some; their tensors may be cut among ranks (model/shard.py)."""

    module: PreTrainedModel

    @abstractmethod
    def trained(self) -> dict[str, nn.Parameter]:
        """Every trainable parameter once, by name."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of everything that decides the model's log-probabilities."""

    @abstractmethod
    def export(self, into: Folder, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the plain Hugging Face layout into a folder that is being built."""

    @abstractmethod
    def activate(self) -> None:
        """Let the module compute with these weights, where it holds others beside them. They stay until others do."""

    def rate(self, name: str) -> float:
        """What the learning rate of a trained parameter is multiplied by."""
        return 1.0

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds, detached; not a copy."""
        return self.replicas()

    def beside(self) -> list[nn.Parameter]:
        """Parameters of the module that stand beside a base which stays as it is: few, so that every rank has them."""
        return []

    @property
    def sharded(self) -> bool:
        """Whether `trained` and `state` are cut among ranks: each has its rows of every tensor."""
        return False

    @property
    def in_step(self) -> bool:
        """Whether ranks exchange weights in every pass, so that each must make as many as the others."""
        return False

    def replicas(self) -> dict[str, Tensor]:
        """Trained tensors that every rank has whole, and with the same bits."""
        return {name: p.detach() for name, p in self.trained().items()}

    def through(self, work: Callable[[Batch], T], batch: Batch) -> T:
        """work(batch), in which the module's parameters are whole tensors."""
        return work(batch)

    def sum_gradients(self, dist: Distributed) -> None:
        """After the backward passes of all ranks: put the sum of their gradients into what is `trained`."""
        dist.sum_gradients(self.trained().values())

    def share(self, dist: Distributed) -> None:  # noqa: B027  # whoever has all has nothing to do
        """After an update, or a state that was read: let every rank have what the others changed."""

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.trained().values():
            parameter.grad = None

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The module with whole tensors on rank 0, to be read there. Every rank must come here."""
        yield

    def sampled(self) -> Tensor:
        """Some thousand numbers of each trained tensor, a copy on the host: the same ones at each call."""
        tensors = [local(p.detach()).flatten() for p in self.trained().values()]
        return torch.cat([tensor[:: 1 + tensor.numel() // SAMPLED].cpu() for tensor in tensors]).clone()


@final
@dataclass(frozen=True)
class WholeModel(Weights):
    """Every parameter of a model, but those of which the gradient is switched off."""

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def activate(self) -> None:
        """There are no others."""

    def digest(self) -> str:
        """Of names, shapes, types and bytes of all tensors, and of the config."""
        digest = hashlib.sha256()
        config = {key: value for key, value in self.module.config.to_dict().items() if key not in UNRELATED}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        state = dict(sorted(self.module.state_dict().items()))
        with ThreadPoolExecutor(THREADS) as threads:
            hashes = list(threads.map(_hash, state.values()))
        for (name, tensor), of_bytes in zip(state.items(), hashes, strict=True):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {of_bytes}".encode())
        return digest.hexdigest()

    def export(self, into: Folder, tokenizer: PreTrainedTokenizerBase) -> None:
        name = str(self.module.config._attn_implementation)
        self.module.set_attn_implementation("eager")  # ours is not known elsewhere
        self.module.save_pretrained(into.path)
        self.module.set_attn_implementation(name)
        tokenizer.save_pretrained(into.path)


def _hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    digest = hashlib.sha256()
    digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()


def train_only(module: PreTrainedModel, patterns: Sequence[str]) -> tuple[str, dict[str, object]]:
    """Train the parameters of which a name fits a pattern, and no other; returns a sentence and its details.

    A matrix with two names, such as that of a tied head, is trained where either fits, and the sentence says so. Raises
    UserError where a pattern fits no name, or nothing could be learned.
    """
    names = names_of(module)
    if not patterns:
        raise UserError("no pattern is given, so nothing would be trained.", location=TRAINABLE, hint="Remove it.")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for aliases in names.values() for name in aliases):
            kinds = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for aliases in names.values() for name in aliases)
            listed = ", ".join([*kinds][:LISTED]) + (", ..." if len(kinds) > LISTED else "")
            raise UserError(f'no weight of this model fits "{pattern}".', location=TRAINABLE, hint=f"It has {listed}.")
    tied = []
    for parameter, aliases in names.items():
        fitting = [name for name in aliases if any(fnmatchcase(name, pattern) for pattern in patterns)]
        parameter.requires_grad_(bool(fitting))
        tied += [f"{name} is one matrix with {fitting[0]}" for name in aliases if fitting and name not in fitting]
    score = dict(module.named_parameters()).get(SCORE)
    if score is not None and not score.requires_grad and not score.is_meta and not bool(score.any()):
        raise UserError(f"{SCORE} is 0 and would stay so, and nothing could be learned.", location=TRAINABLE,
                        hint=f'Add "{SCORE}".')  # fmt: skip
    trained = [parameter for parameter in names if parameter.requires_grad]
    share = sum(p.numel() for p in trained) / sum(p.numel() for p in names)
    text = "; ".join([f"{len(trained)} of {len(names)} parameters are trained, {share:.2%} of the weights", *tied])
    return text, {"parameters": len(trained), "share": share}


def names_of(module: PreTrainedModel) -> dict[nn.Parameter, list[str]]:
    """Every parameter once, with all its names."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names
